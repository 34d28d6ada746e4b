import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.sample import Unreadable
from mmjax.data.sources.huggingface import Source
from support import tables

ITEMS = tables.examples()


def described(table, **features):
    """With the library's own description of its features in the schema."""
    info = {"info": {"features": {name: {"_type": "Value"} for name in table.column_names} | features}}
    return table.replace_schema_metadata({"huggingface": json.dumps(info)})


def write_stream(path, table, *, rows_a_batch=2):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_a_batch)


def save(folder, table, *, shards=2, split="train", **options):
    """As ``save_to_disk`` lays a data set out."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    bounds = [i * len(table) // shards for i in range(shards + 1)]
    for name, start, end in zip(names, bounds, bounds[1:], strict=False):
        write_stream(folder / name, table.slice(start, end - start), **options)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "1f", "_format_type": None}
    (folder / "state.json").write_text(json.dumps(state | {"_split": split, "_indices_data_files": None}))
    (folder / "dataset_info.json").write_text("{}")


def save_splits(folder, **splits):
    for split, table in splits.items():
        save(folder / split, table, split=split)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))


def check(source, items=ITEMS):
    assert len(source) == len(items) and source.unreadable == [] and source.group == 1
    for i in [*range(len(items)), *reversed(range(len(items)))]:
        got = source[i]
        assert (got["id"], got["image"], got["captions"]) == (i, items[i][1], items[i][2])
        assert got["key"] == source.column("key")[i]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[len(items) - 1] == source[len(items) - 1]
    for outside in (-1, len(items)):
        with pytest.raises(IndexError):
            source[outside]


@pytest.mark.parametrize("shards, batch", [(1, 100), (2, 2), (3, 1)])
def test_a_saved_data_set(tmp_path, shards, batch):
    save(tmp_path / "d", tables.embedded(ITEMS), shards=shards, rows_a_batch=batch)
    source = Source("anything", path=str(tmp_path / "d"))
    check(source)
    assert source[0]["key"] == f"data-00000-of-{shards:05d}.arrow:1"


def test_saved_splits(tmp_path):
    save_splits(tmp_path / "d", train=tables.embedded(ITEMS[:4]), test=tables.embedded(ITEMS[4:]))
    check(Source("train", path=str(tmp_path / "d")), ITEMS[:4])
    check(Source("test", path=str(tmp_path / "d") + "/"), ITEMS[4:])
    check(Source("x", path=str(tmp_path / "d" / "test")), ITEMS[4:])
    with pytest.raises(ConfigError, match=r"split='val'.*test, train"):
        Source("val", path=str(tmp_path / "d"))


@pytest.mark.parametrize(
    "pattern",
    [
        "data/{split}-{i:05d}-of-00002.parquet",
        "data/{split}-{i:05d}-of-00002-0123456789abcdef.parquet",
        "{split}/{i}.parquet",
        "{split}-{i:05d}-of-00002.parquet",
        "data/{split}/data-{i:05d}-of-00002.parquet",
    ],
)
def test_folders_of_parquet(tmp_path, pattern):
    for split, items in (("train", ITEMS[:4]), ("my-test", ITEMS[4:])):
        for i in range(2):
            path = tmp_path / pattern.format(split=split, i=i)
            path.parent.mkdir(parents=True, exist_ok=True)
            half = len(items) // 2
            pq.write_table(tables.embedded(items[i * half : (i + 1) * half]), path, row_group_size=1)
    (tmp_path / "README.md").write_text("x")
    check(Source("train", path=str(tmp_path)), ITEMS[:4])
    check(Source("my-test", path=str(tmp_path)), ITEMS[4:])
    with pytest.raises(ConfigError, match=r"split='val'.*my-test, train"):
        Source("val", path=str(tmp_path))


def test_one_parquet_file_a_split_and_shards_in_natural_order(tmp_path):
    for i in range(6):
        pq.write_table(tables.embedded(ITEMS[i : i + 1]), tmp_path / f"train-{[0, 1, 2, 9, 10, 11][i]}-of-12.parquet")
    pq.write_table(tables.embedded(ITEMS[:2]), tmp_path / "test.parquet")
    check(Source("train", path=str(tmp_path)))
    check(Source("test", path=str(tmp_path)), ITEMS[:2])


def test_pictures_of_another_name_and_single_captions(tmp_path):
    table = tables.embedded(ITEMS).rename_columns(["photo", "sentences"]).append_column("score", pa.array(range(6)))
    save(tmp_path / "d", table)
    source = Source("train", path=str(tmp_path / "d"), columns=("score",), modalities=("rgb",))
    assert source[3]["rgb"] == ITEMS[3][1] and source[3]["score"] == 3
    assert source.column("score").tolist() == list(range(6))
    plain = pa.table({"img": [d for _, d, _ in ITEMS], "text": [c[0] for _, _, c in ITEMS]})
    save(tmp_path / "plain", plain)
    check(Source("train", path=str(tmp_path / "plain")), [(k, d, c[:1]) for k, d, c in ITEMS])


def test_pictures_that_the_table_only_names(tmp_path):
    tables.write_images(tmp_path / "d", ITEMS)
    save(tmp_path / "d", tables.embedded(ITEMS, paths=True))
    check(Source("train", path=str(tmp_path / "d")))
    tables.write_images(tmp_path / "elsewhere", ITEMS[:1])
    source = Source("train", path=str(tmp_path / "d"), image_root=str(tmp_path / "elsewhere"))
    assert source[0]["image"] == ITEMS[0][1]
    with pytest.raises(Unreadable, match="missing file"):
        source[1]
    names = pa.table({"image": [k for k, _, _ in ITEMS], "caption": [c for _, _, c in ITEMS]})
    save(tmp_path / "d", names)
    check(Source("train", path=str(tmp_path / "d")))


def test_class_labels(tmp_path):
    label = {"_type": "ClassLabel", "names": ["cat", "dog"]}
    table = tables.embedded(ITEMS).select(["image"]).append_column("label", pa.array([0, 1, 1, 0, -1, None]))
    save(tmp_path / "d", described(table, label=label))
    source = Source("train", path=str(tmp_path / "d"))
    assert source.class_names == ["cat", "dog"] and source.column("label").tolist() == [0, 1, 1, 0]
    assert [(source[i]["label"], source[i]["captions"]) for i in (1, 3)] == [(1, ["dog"]), (0, ["cat"])]
    assert [p[1] for p in source.unreadable] == ["no caption", "no caption"]
    with_captions = table.append_column("caption", pa.array(["x"] * 6))
    save(tmp_path / "c", described(with_captions, label=label))
    assert "label" not in Source("train", path=str(tmp_path / "c"))[0]
    source = Source("train", path=str(tmp_path / "c"), label_column="label")
    assert source[1]["label"] == 1 and source[1]["captions"] == ["x"] and source.class_names == ["cat", "dog"]
    assert [p[1] for p in source.unreadable] == ["bad row", "bad row"]


def test_several_modalities(tmp_path):
    table = tables.embedded(ITEMS).append_column("depth", pa.array([tables.png(90 + i) for i in range(6)]))
    save(tmp_path / "d", table)
    source = Source("train", path=str(tmp_path / "d"), modalities=("image", "depth"))
    for i in (5, 0, 3):
        assert (source[i]["image"], source[i]["depth"]) == (ITEMS[i][1], tables.png(90 + i))
    with pytest.raises(ConfigError, match=r"modalities='thermal'.*no such column"):
        Source("train", path=str(tmp_path / "d"), modalities=("image", "thermal"))


# Damage.


def test_empty_cells(tmp_path):
    cells = [{"bytes": b"x", "path": None}, {"bytes": b"", "path": None}, {"bytes": None, "path": None}, None]
    cells += [{"bytes": None, "path": b"../up.png"}]
    cells += [{"bytes": None, "path": b"caf\xe9"}]
    raw, kind = (pa.struct([("bytes", pa.binary()), ("path", path)]) for path in (pa.binary(), pa.string()))
    save(tmp_path / "d", pa.table({"image": pa.array(cells, raw).view(kind), "caption": list("abcdef")}))
    source = Source("train", path=str(tmp_path / "d"))
    assert source[0]["image"] == b"x"
    for i, reason in enumerate(["empty image"] * 3 + ["bad row"] * 2, 1):
        with pytest.raises(Unreadable) as error:
            source[i]
        assert (error.value.reason, error.value.key) == (reason, source.column("key")[i])


def test_broken_captions_are_listed_and_the_rest_stays(tmp_path):
    captions = [[b"fine", b""], [b"caf\xe9"], [], None, [None, b"good"], [b" "]]
    kind = pa.list_(pa.binary())
    table = tables.embedded(ITEMS).set_column(1, "caption", pa.array(captions, kind).view(pa.list_(pa.string())))
    save(tmp_path / "d", table)
    pq.write_table(table, tmp_path / "train.parquet")
    for folder, name in ((tmp_path / "d", "data-0000{}-of-00002.arrow:{}"), (tmp_path, "train.parquet:{1}")):
        source = Source("train", path=str(folder))
        assert [source[i]["captions"] for i in range(2)] == [["fine"], ["good"]]
        assert [source[i]["image"] for i in range(2)] == [ITEMS[0][1], ITEMS[4][1]]
        rows = (1, 2, 3, 5)
        reasons = ["caption is not UTF-8", "no caption", "no caption", "no caption"]
        lines = [(row // 3, row % 3 + 1) if folder != tmp_path else (0, row + 1) for row in rows]
        assert [p[:2] for p in source.unreadable] == [
            (name.format(*line), reason) for line, reason in zip(lines, reasons, strict=True)
        ]


def test_torn_and_damaged_containers(tmp_path):
    save(tmp_path / "d", tables.embedded(ITEMS), shards=1)
    path = tmp_path / "d" / "data-00000-of-00001.arrow"
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"junk" * 100):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="no readable Arrow file") as error:
            Source("train", path=str(tmp_path / "d"))
        assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(ConfigError, match="is missing"):
        Source("train", path=str(tmp_path / "d"))
    (tmp_path / "d" / "state.json").write_text("{")
    with pytest.raises(ConfigError, match=r"state\.json is damaged"):
        Source("train", path=str(tmp_path / "d"))
    (tmp_path / "d" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../x.arrow"}]}))
    with pytest.raises(ConfigError, match="names no file of the folder"):
        Source("train", path=str(tmp_path / "d"))


def test_random_damage_never_crashes(tmp_path):
    save(tmp_path / "d", tables.embedded(ITEMS), shards=1)
    path = tmp_path / "d" / "data-00000-of-00001.arrow"
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(random.integers(1, 8)):
            data[random.integers(len(data))] = random.integers(256)
        path.unlink()  # the old one may still be mapped
        path.write_bytes(data)
        try:
            source = Source("train", path=str(tmp_path / "d"))
        except ConfigError:
            refused += 1
            continue
        for i in range(len(source)):
            try:
                assert source[i]["captions"]
            except Unreadable as error:
                assert error.key
    assert 0 < refused < 300


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        Source("train", path="owner/name")
    with pytest.raises(ConfigError, match="neither saved"):
        Source("train", path=str(tmp_path))
    save(tmp_path / "d", pa.table({"a": [1], "b": ["x"]}))
    with pytest.raises(ConfigError, match="image_column=None"):
        Source("train", path=str(tmp_path / "d"))
    with pytest.raises(ConfigError, match=r"image_column='a'.*no pictures"):
        Source("train", path=str(tmp_path / "d"), image_column="a", caption_columns=("b",))
    save(tmp_path / "d", tables.embedded(ITEMS))
    state = json.loads((tmp_path / "d" / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (tmp_path / "d" / "state.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="flatten_indices"):
        Source("train", path=str(tmp_path / "d"))


def test_a_data_set_without_rows(tmp_path):
    save(tmp_path / "d", tables.embedded(ITEMS)[:0])
    with pytest.raises(ConfigError, match="has no rows"):
        Source("train", path=str(tmp_path / "d"))
