"""Records: bytes, unknown fields, the table beside them, and the source that reads both."""

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.config import ConfigError
from mmjax.data.formats.generated_records import Record, jsonable, table_of
from mmjax.data.open_source import open_source
from mmjax.data.sample import Unreadable
from mmjax.inference.shards import ShardFolder
from support.pictures import encoded, photograph

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), VALUES, st.binary(max_size=9) | st.none())
def test_bytes_come_back_as_they_were_with_what_a_newer_version_wrote(fields, new, image):
    record = Record(id="3.1", parent_id="3", image=image, size=(4, 5), fields=fields, unknown={"zz_new": new})
    record.captions = [{"text": "ein Käfer", "source": "raw", "weight": 0.5, "of_the_future": [1]}]
    data = record.to_bytes()
    back = Record.from_bytes(data)
    assert back == record and back.to_bytes() == data
    assert msgpack.unpackb(data)["zz_new"] == new and back.captions[0]["of_the_future"] == [1]


@given(st.binary(max_size=40) | VALUES.map(msgpack.packb))
def test_other_bytes_are_an_error_of_one_kind(data):
    try:
        Record.from_bytes(data)
    except ValueError as error:
        assert "not a record" in str(error)


def test_plain_values():
    assert jsonable({"a": np.float32(0.5), "b": (np.arange(2), b"x"), 3: None}) == {
        "a": 0.5, "b": [[0, 1], b"x"], "3": None,
    }  # fmt: skip
    with pytest.raises(TypeError, match="object"):
        jsonable([object()])


def test_a_reason_is_one_line_and_the_first_one_stays():
    record = Record(id="1")
    record.drop("first\n reason")
    record.drop("second")
    assert not record.keep and record.reason == "first reason"


def caption(text, source="raw", weight=1.0):
    return {"text": text, "source": source, "weight": weight}


def folder_of(path, records, *, shards=2):
    folder = ShardFolder(
        path, plan_name="generate.json", plan={}, kinds=("records",), suffixes=(".array_record", ".parquet"),
        shards=shards,
    )  # fmt: skip
    with folder.locked():
        for number in range(shards):
            own = records[number * len(records) // shards : (number + 1) * len(records) // shards]
            data = {("records", ".array_record"): [r.to_bytes() for r in own], ("records", ".parquet"): table_of(own)}
            folder.write(number, data)
    return str(path)


@pytest.fixture
def records():
    made = []
    for number in range(6):
        image = encoded(photograph(8, 9, seed=number), "PNG")
        record = Record(id=f"{number}", image=image, split="val" if number == 5 else "train", fields={"label": number})
        record.captions = [caption(f"raw {number}"), caption(f"made {number}", "caption", number / 2)]
        record.scores = {"clip": number / 10} if number != 2 else {}
        made.append(record)
    made[1].drop("too short")
    made[3].negatives = [{"text": "false 3", "kind": "color", "of": 0}]
    return made


def test_the_source_reads_kept_records_of_its_split(tmp_path, records):
    path = folder_of(tmp_path / "out", records)
    source = open_source({"name": "generated", "path": path}, split="train")
    assert [source[i]["key"] for i in range(len(source))] == ["0", "2", "3", "4"]
    assert source[0]["captions"] == ["raw 0"] and "caption_weights" not in source[0]
    assert source[2]["captions"] == ["raw 3", "made 3"] and source[2]["caption_weights"] == [1.0, 1.5]
    assert source[2]["negatives"] == [("color", "raw 3", "false 3")] and source[0]["negatives"] == []
    assert source[3]["label"] == 4 and source[3]["image"] == records[4].image and source[3]["id"] == 3
    np.testing.assert_array_equal(source.column("clip"), [0.0, np.nan, 0.3, 0.4])
    assert source.column("key").tolist() == ["0", "2", "3", "4"]
    assert len(open_source({"name": "generated", "path": path}, split="val")) == 1
    made = open_source({"name": "generated", "path": path, "sources": ("caption",)}, split="train")
    assert made[3]["captions"] == ["made 4"]
    with pytest.raises(Unreadable, match="no caption"):
        made[0]
    chosen = {"name": "generated", "path": path, "selection": {"score": "clip", "minimum": 0.3}}
    assert len(open_source(chosen, split="train")) == 2


def test_the_table_alone_decides(tmp_path, records):
    path = folder_of(tmp_path / "out", records)
    records[4].drop("changed")
    records[3].captions[0]["weight"] = 0.0
    (tmp_path / "out" / "records-00001-of-00002.parquet").unlink()
    folder = ShardFolder(tmp_path / "out", plan_name="generate.json", plan={}, kinds=("records",), shards=2)
    folder.write(1, {("records", ".parquet"): table_of(records[3:])})
    source = open_source({"name": "generated", "path": path}, split="train")
    assert [source[i]["key"] for i in range(len(source))] == ["0", "2", "3"]
    assert source[2]["captions"] == ["made 3"]


def test_what_cannot_be_read_is_one_line(tmp_path, records):
    path = folder_of(tmp_path / "out", records)
    for section, split, message in (
        ({"path": str(tmp_path)}, "train", r"holds no shards of mmjax generate"),
        ({"path": path}, "test", r"split='test': .* keeps no record of it; known: train, val"),
        ({"path": path, "modalities": ("depth",)}, "train", "modalities"),
    ):
        with pytest.raises(ConfigError, match=message):
            modalities = section.pop("modalities", ("image",))
            open_source({"name": "generated", **section}, split=split, modalities=modalities)
    (tmp_path / "out" / "records-00000-of-00002.parquet").unlink()
    with pytest.raises(ConfigError, match="has 1 of 2 shards"):
        open_source({"name": "generated", "path": path}, split="train")
