import pickle
import struct
import threading

import fsspec
import numpy as np
import pytest
from array_record.python import array_record_module

from mmjax.core.config import ConfigError, build
from mmjax.data.formats.tf_example import encode
from mmjax.data.sample import Unreadable
from mmjax.data.sources.arrayrecord import Source
from mmjax.data.storage import filesystem
from support import tables

ITEMS = tables.examples(7)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))


def record(i, **names):
    key, data, captions = ITEMS[i]
    features = {
        names.get("image", "image"): [data],
        names.get("captions", "captions"): captions,
        "score": np.array([i / 4], np.float32),
        "label": np.array([i % 3]),
        "name": [key],
    }
    return encode(features)


RECORDS = [record(i) for i in range(len(ITEMS))]


def write_array_record(path, records):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for one in records:
        writer.write(one)
    writer.close()


def write_tfrecord(path, records):
    path.write_bytes(tables.tfrecord(records))


WRITERS = {"array_record": write_array_record, "tfrecord": write_tfrecord}


def write(folder, kind, records=RECORDS, *, shards=2):
    for i in range(shards):
        part = records[i * len(records) // shards : (i + 1) * len(records) // shards]
        WRITERS[kind](folder / f"t-{i:05d}-of-{shards:05d}", part)
    return str(folder / "t-*")


def check(source):
    assert len(source) == 7 and source.unreadable == [] and source.group == 1 and source.modalities == ("image",)
    for i in [3, 6, 0, 1, 2, 5, 4]:
        got = source[i]
        assert (got["id"], got["image"], got["captions"]) == (i, ITEMS[i][1], ITEMS[i][2])
    assert source[3]["key"] == "t-00001-of-00002:0" and source[2]["key"] == "t-00000-of-00002:2"
    for outside in (-1, 7):
        with pytest.raises(IndexError):
            source[outside]


@pytest.mark.parametrize("kind", WRITERS)
def test_both_containers_are_known_by_content(tmp_path, kind):
    path = write(tmp_path, kind)
    check(Source("train", path=path))
    check(Source("train", path=path, format=kind))
    check(Source("train", path=path))  # by the index that was kept
    check(pickle.loads(pickle.dumps(Source("train", path=path))))


@pytest.mark.parametrize("kind", WRITERS)
def test_reading_from_many_threads(tmp_path, kind):
    source = Source("train", path=write(tmp_path, kind))
    wrong = []

    def read(seed):
        for i in np.random.default_rng(seed).integers(7, size=100).tolist():
            if source[i]["image"] != ITEMS[i][1]:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_names_of_features(tmp_path):
    path = write(tmp_path, "tfrecord", [record(i, image="image/encoded", captions="sbu/caption") for i in range(7)])
    source = Source("train", path=path, image_key="image/encoded", caption_keys=("sbu/caption",))
    assert source[5]["image"] == ITEMS[5][1] and source[5]["captions"] == ITEMS[5][2]
    source = Source("train", path=path, label_key="label", columns=("score", "name"))  # both are found
    assert source[5]["image"] == ITEMS[5][1] and source[5]["captions"] == ITEMS[5][2]
    assert source[5]["score"] == 1.25 and source[5]["name"] == ITEMS[5][0] and source[5]["label"] == 2
    for option, message in (
        ({"image_key": "imge"}, "image_key='imge'.*image/encoded"),
        ({"caption_keys": ("x",)}, "caption_keys='x'"),
        ({"label_key": "lable"}, "label_key='lable'.*'label'"),
        ({"columns": ("scores",)}, "columns='scores'.*'score'"),
        ({"modalities": ("image", "depth")}, "modalities='depth'"),
        ({"modalities": ()}, "modalities"),
        ({"format": "riegeli"}, "format='riegeli'"),
        ({"max_captions": 0}, "max_captions"),
        ({"caption_norm": "x"}, "caption_norm"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(Source, {"split": "train", "path": path, **option}, path="data.source")


def prepared(i, **features):
    key, data, captions = ITEMS[i]
    made = {
        "id": np.array([i // 2]),
        "key": [key],
        "captions": captions,
        "image": [data],
        "depth": [tables.png(90 + i)],
    }
    negatives = {f"negatives/{part}": [f"{part} {i}é", f"{part} x"] for part in ("kind", "true", "false")}
    return encode(made | negatives | {"score": np.array([0.5, i], np.float32), "label": np.array([i])} | features)


def test_prepared_records_keep_ids_keys_negatives_and_fields(tmp_path):
    source = Source("train", path=write(tmp_path, "array_record", [prepared(i) for i in range(7)]))
    assert source.modalities == ("image", "depth")
    got = source[5]
    assert got["id"] == 2 and got["key"] == ITEMS[5][0] and got["label"] == 5 and got["depth"] == tables.png(95)
    assert got["negatives"] == [("kind 5é", "true 5é", "false 5é"), ("kind x", "true x", "false x")]
    np.testing.assert_array_equal(got["score"], [0.5, 5])
    only = Source("train", path=str(tmp_path / "t-*"), modalities=("depth",))[5]
    assert only["depth"] == tables.png(95) and "image" not in only


# Damage.


@pytest.mark.parametrize("kind", WRITERS)
def test_broken_records_cost_themselves_alone(tmp_path, kind):
    records = list(RECORDS)
    records[1] = b"\xff\xff\xff"
    records[2] = encode({"image": [ITEMS[2][1]], "captions": ["", b"\x00"]})
    records[3] = encode({"image": [ITEMS[3][1]], "captions": [b"caf\xe9"]})
    records[4] = encode({"captions": ["a"]})
    records[5] = encode({"image": [b""], "captions": ["a"]})
    source = Source("train", path=write(tmp_path, kind, records))
    reasons = []
    for i in range(7):
        try:
            reasons.append(source[i]["id"])
        except Unreadable as error:
            assert error.key == f"t-0000{i // 3 if i < 6 else 1}-of-00002:{i % 3 if i < 6 else 3}"
            reasons.append(error.reason)
    assert reasons == [0, "bad row", "no caption", "caption is not UTF-8", "empty image", "empty image", 6]


def test_features_of_other_types_are_bad_rows(tmp_path):
    records = list(RECORDS)
    records[1] = encode({"image": np.array([1, 2]), "captions": ["a"], "label": ["x"]})
    records[2] = encode({"image": [ITEMS[2][1]], "captions": np.array([5])})
    records[3] = encode({"image": [ITEMS[2][1]], "captions": ["a"], "label": ["x"]})
    source = Source("train", path=write(tmp_path, "tfrecord", records), label_key="label")
    for i in (1, 2, 3):
        with pytest.raises(Unreadable, match="bad row"):
            source[i]


def test_a_torn_tfrecord_gives_what_comes_before_the_damage(tmp_path):
    write(tmp_path, "tfrecord", shards=1)
    path = tmp_path / "t-00000-of-00001"
    whole = path.read_bytes()
    starts = np.cumsum([0] + [16 + len(r) for r in RECORDS]).tolist()
    for cut in (starts[4] + 5, starts[4] + 12, starts[5] - 1):
        path.write_bytes(whole[:cut])
        source = Source("train", path=str(path))
        assert len(source) == 4 and source[3]["image"] == ITEMS[3][1]
        assert [p[:2] for p in source.unreadable] == [("t-00000-of-00001:4", "truncated archive")]
    damaged = bytearray(whole)
    damaged[starts[4]] ^= 1  # the length
    path.write_bytes(damaged)
    source = Source("train", path=str(path))
    assert len(source) == 4 and "checksum" in source.unreadable[0][2]
    path.write_bytes(whole[: starts[4]])
    assert len(Source("train", path=str(path))) == 4 and not Source("train", path=str(path)).unreadable


def test_a_tfrecord_that_shrinks_after_it_was_opened(tmp_path):
    path = write(tmp_path, "tfrecord", shards=1)
    source = Source("train", path=path)
    (tmp_path / "t-00000-of-00001").write_bytes(b"short")
    filesystem.stamp(str(tmp_path / "t-00000-of-00001"))
    with pytest.raises(Unreadable, match="truncated archive"):
        source[6]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_is_gone_after_it_was_opened(tmp_path, kind):
    write(tmp_path, kind)
    source = Source("train", path=str(tmp_path / "t-*"))
    (tmp_path / "t-00001-of-00002").unlink()
    assert source[0]["image"] == ITEMS[0][1]
    with pytest.raises(Unreadable, match="missing file"):
        pickle.loads(pickle.dumps(source))[6]


def test_damage_in_the_middle_of_an_array_record(tmp_path):
    random = np.random.default_rng(0)
    items = [encode({"image": [random.bytes(3000)], "captions": [f"c{i}"]}) for i in range(20)]
    items[0] = RECORDS[0]
    write_array_record(tmp_path / "a", items)
    data = bytearray((tmp_path / "a").read_bytes())
    data[20_000:20_040] = bytes(40)
    (tmp_path / "a").write_bytes(data)
    source = Source("train", path=str(tmp_path / "a"), image_key="image")
    torn = []
    for i in range(20):
        try:
            assert source[i]["captions"] == ([f"c{i}"] if i else ITEMS[0][2])
        except Unreadable as error:
            assert error.reason == "truncated archive" and error.key == f"a:{i}"
            torn.append(i)
    assert 1 <= len(torn) <= 3
    assert source[19]["captions"] == ["c19"]


@pytest.mark.parametrize("content", [b"", b"junk" * 10, b"junk" * 50_000, "half", "end"])
def test_files_that_are_no_records_are_said_at_once(tmp_path, content):
    if isinstance(content, str):
        write_array_record(tmp_path / "a", RECORDS)
        whole = (tmp_path / "a").read_bytes()
        content = whole[: len(whole) // 2] if content == "half" else whole[:-100]
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ConfigError, match="no readable ArrayRecord file") as error:
        Source("train", path=str(tmp_path / "a"))
    assert "\n" not in str(error.value)


def test_other_wrong_paths(tmp_path):
    with fsspec.open("memory://bucket/a", "wb") as file:
        file.write(b"x")
    with pytest.raises(ConfigError, match="local paths"):
        Source("train", path="memory://bucket/a", format="array_record")
    with pytest.raises(ConfigError, match=r"no such file|no file matches"):
        Source("train", path=str(tmp_path / "t-*"))
    (tmp_path / "a").write_bytes(b"\x1f\x8bxxxxxxxxxxxxxx")
    with pytest.raises(ConfigError, match="gzip"):
        Source("train", path=str(tmp_path / "a"), format="tfrecord")
    (tmp_path / "a").write_bytes(b"xxxxxxxxxxxxxxxxxxxxxxx")
    with pytest.raises(ConfigError, match="checksum"):
        Source("train", path=str(tmp_path / "a"), format="tfrecord")
    write_tfrecord(tmp_path / "a", [b"\xff"] * 20)
    with pytest.raises(ConfigError, match="no record with features"):
        Source("train", path=str(tmp_path / "a"))


def test_tfrecords_by_url(tmp_path):
    with fsspec.open("memory://tf/a", "wb") as file:
        file.write(tables.tfrecord(RECORDS))
    source = Source("train", path="memory://tf/a")
    assert [source[i]["image"] for i in range(7)] == [data for _, data, _ in ITEMS]


def test_random_damage_never_crashes(tmp_path):
    whole = tables.tfrecord(RECORDS)
    random = np.random.default_rng(0)
    lost = 0
    for n in range(150):
        data = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            data[random.integers(len(data))] = random.integers(256)
        path = tmp_path / f"{n}"
        path.write_bytes(data)
        try:
            source = Source("train", path=str(path), format="tfrecord")
        except ConfigError:
            continue
        lost += len(source.unreadable)
        for i in range(len(source)):
            try:
                assert source[i]["captions"]
            except Unreadable as error:
                assert error.key
                lost += 1
    assert lost > 50


def test_a_length_beyond_all_files(tmp_path):
    length = struct.pack("<Q", 1 << 60)
    header = length + struct.pack("<I", tables.masked_crc(length))
    (tmp_path / "a").write_bytes(tables.tfrecord(RECORDS[:2]) + header + b"x" * 50)
    source = Source("train", path=str(tmp_path / "a"))
    assert len(source) == 2 and len(source.unreadable) == 1
