import io
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

from mmjax.core.config import ConfigError
from mmjax.data.sample import Unreadable
from mmjax.data.sources.tfds import Source
from support import tables

ITEMS = tables.examples(12)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))


def gray(i):
    data = io.BytesIO()
    Image.fromarray(np.full((4, 4), i, np.uint8)).save(data, "png")
    return data.getvalue()


def foreign_features():
    """As in data sets of others: captions within a sequence, names with slashes, boxes, class labels."""
    return {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "image/filename": tfds.features.Text(),
        "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
        "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature(), "score": np.float32}),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        "pixels": tfds.features.Tensor(shape=(2, 2, 3), dtype=np.uint8),
        "segments": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
    }


def foreign_example(i):
    key, data, captions = ITEMS[i]
    return {
        "image": data,
        "image/filename": key,
        "captions": [{"id": 7, "text": c} for c in captions],
        "objects": [{"bbox": tfds.features.BBox(ymin=0.0, xmin=0.0, ymax=0.5, xmax=1.0), "score": 0.5}],
        "label": i % 2,
        "pixels": np.full((2, 2, 3), i, np.uint8),
        "segments": gray(i),
    }


def own_features():
    """As ``mmjax data prepare`` writes them."""
    text = tfds.features.Text
    return {
        "id": np.int64,
        "key": text(),
        "captions": tfds.features.Sequence(text()),
        "image": tfds.features.Image(shape=(None, None, 3)),
        "depth": tfds.features.Image(shape=(None, None, 3)),
        "negatives": tfds.features.Sequence({part: text() for part in ("kind", "true", "false")}),
        "score": np.float32,
        "words": tfds.features.Sequence(text()),
        "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
    }


def own_example(i):
    key, data, captions = ITEMS[i]
    return {
        "id": i // 2,
        "key": key,
        "captions": captions,
        "image": data,
        "depth": tables.png(90 + i),
        "negatives": [{"kind": "swap", "true": captions[0], "false": "é"}] * (i % 2),
        "score": i / 2,
        "words": ["a", "ü"][: i % 3],
        "boxes": np.full((i % 2, 4), i, np.float32),
    }


def write(folder, name, features, splits):
    """A prepared data set whose records TFDS itself encodes; its builders need a package that need not be there."""
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(features)
    features.save_config(str(folder))
    described = []
    for split, shards in splits.items():
        for number, examples in enumerate(shards):
            path = folder / f"{name}-{split}.array_record-{number:05d}-of-{len(shards):05d}"
            writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
            for one in examples:
                writer.write(features.serialize_example(features.encode_example(one)))
            writer.close()
        described.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": "1",
                "shardLengths": [str(len(examples)) for examples in shards],
            }
        )
    info = {"fileFormat": "array_record", "name": name, "version": "1.0.0", "splits": described}
    (folder / "dataset_info.json").write_text(json.dumps(info | {"moduleName": "elsewhere"}))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    # Not in the order of the items, as TFDS has it.
    first, second, test = [3, 0, 8, 5], [1, 7, 2, 6, 4], [11, 9, 10]
    splits = {"train": [[foreign_example(i) for i in part] for part in (first, second)]}
    splits["test"] = [[foreign_example(i) for i in test]]
    write(folder / "foreign" / "1.0.0", "foreign", foreign_features(), splits)
    own = {"train": [[own_example(i) for i in np.random.default_rng(0).permutation(12).tolist()]]}
    write(folder / "own" / "1.0.0", "own", own_features(), own)
    return folder


def as_tfrecord(source, target):
    """The same data set with its records in TFRecord files."""
    shutil.copytree(source, target)
    info = json.loads((target / "dataset_info.json").read_text())
    (target / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    for path in sorted(target.glob("*.array_record-*")):
        reader = array_record_module.ArrayRecordReader(str(path))
        records = [reader.read([i])[0] for i in range(reader.num_records())]
        reader.close()
        path.with_name(path.name.replace("array_record", "tfrecord")).write_bytes(tables.tfrecord(records))
        path.unlink()
    return target


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def foreign(request, prepared, tmp_path_factory):
    folder = prepared / "foreign" / "1.0.0"
    return folder if request.param == "array_record" else as_tfrecord(folder, tmp_path_factory.mktemp("t") / "1.0.0")


def check(source, items):
    """All of ``items``, in the order that the files have."""
    assert len(source) == len(items) and source.unreadable == [] and source.group == 1
    found = [source[i] for i in range(len(source))]
    assert [got["id"] for got in found] == list(range(len(items)))
    by_key = {got["key"]: got for got in found}
    for key, data, captions in items:
        assert (by_key[key]["image"], by_key[key]["captions"]) == (data, captions)
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i] for i in reversed(range(len(items)))] == found[::-1]
    for outside in (-1, len(items)):
        with pytest.raises(IndexError):
            source[outside]


def test_data_sets_of_others(foreign):
    source = Source("train", path=str(foreign))
    assert source.modalities == ("image",) and source.class_names == ["cat", "dog"]
    check(source, ITEMS[:9])
    numbers = {key: i for i, (key, _, _) in enumerate(ITEMS)}
    for i in range(9):
        assert source[i]["label"] == numbers[source[i]["key"]] % 2
    assert set(source[0]) == {"id", "key", "captions", "image", "label"}
    check(Source("test", path=str(foreign)), ITEMS[9:])


def test_slices_sums_and_names_of_splits(foreign):
    whole = Source("train", path=str(foreign))
    keys = [whole[i]["key"] for i in range(9)]

    def taken(split, **options):
        source = Source(split, path=str(foreign), **options)
        return [source[i]["key"] for i in range(len(source))]

    assert taken("train[2:5]") == keys[2:5] and taken("train[:-3]") == keys[:-3]
    assert taken("train[50%:]") == keys[len(keys) - len(taken("train[50%:]")) :] and 4 <= len(taken("train[50%:]")) <= 5
    assert taken("val", splits={"val": "train[6:]"}) == keys[6:]
    both = taken("train[7:]+test")
    assert both[:2] == keys[7:] and sorted(both[2:]) == sorted(key for key, _, _ in ITEMS[9:])
    for split in ("val", "train[", "train[90%", "", "train[x:]"):
        with pytest.raises(ConfigError, match=r"no such split; there are train, test"):
            Source(split, path=str(foreign))


def test_the_folder_may_be_that_of_the_version_the_data_set_or_all(prepared, tmp_path):
    root = prepared
    for options in (
        {"path": str(root / "foreign" / "1.0.0")},
        {"path": str(root / "foreign")},
        {"path": str(root), "dataset": "foreign"},
        {"path": str(root) + "/", "dataset": "foreign:1.0.0"},
    ):
        assert len(Source("test", **options)) == 3
    shutil.copytree(root / "foreign" / "1.0.0", tmp_path / "foreign" / "config" / "9.0.0")
    shutil.copytree(root / "own" / "1.0.0", tmp_path / "foreign" / "config" / "10.0.0")
    assert len(Source("train", path=str(tmp_path), dataset="foreign/config")) == 12
    assert len(Source("train", path=str(tmp_path), dataset="foreign/config:9.0.0")) == 9


def test_options_for_features(foreign):
    source = Source(
        "train",
        path=str(foreign),
        image_key="segments",
        caption_keys=("image/filename",),
        columns=("objects/bbox", "objects/score", "captions/id"),
        caption_norm="albef",
        max_captions=1,
    )
    got = source[0]
    assert got["image"].startswith(b"\x89PNG") and got["captions"] == [got["key"].replace("/", " ").replace(".", "")]
    np.testing.assert_array_equal(got["objects/bbox"], [[0, 0, 0.5, 1]])
    assert np.asarray(got["objects/score"]).tolist() == [0.5] and set(np.asarray(got["captions/id"]).tolist()) == {7}
    pixels = Source("train", path=str(foreign), modalities=("image", "pixels"))[0]
    assert pixels["pixels"].shape == (2, 2, 3) and pixels["pixels"].dtype == np.uint8
    for option, message in (
        ({"image_key": "imag"}, r"image_key='imag'.*'image'"),
        ({"image_key": "label"}, r"image_key='label'.*no such picture"),
        ({"modalities": ("image", "depth")}, r"modalities='depth'"),
        ({"caption_keys": ("captions",)}, r"caption_keys='captions'.*'captions/"),
        ({"label_key": "labels"}, r"label_key='labels'.*'label'"),
        ({"columns": ("objects/boxes",)}, r"columns='objects/boxes'.*'objects/bbox'"),
    ):
        with pytest.raises(ConfigError, match=message):
            Source("train", path=str(foreign), **option)


def test_what_was_prepared_here_keeps_all_it_had(prepared):
    source = Source("train", path=str(prepared / "own"))
    assert source.modalities == ("image", "depth")
    by_key = {source[i]["key"]: source[i] for i in range(len(source))}
    for i, (key, data, captions) in enumerate(ITEMS):
        got = by_key[key]
        assert (got["id"], got["image"], got["depth"], got["captions"]) == (i // 2, data, tables.png(90 + i), captions)
        assert got["negatives"] == [("swap", captions[0], "é")] * (i % 2)
        assert got["score"] == i / 2 and isinstance(got["score"], float) and got["words"] == ["a", "ü"][: i % 3]
        assert np.asarray(got["boxes"]).shape == (i % 2, 4)
    only = Source("train", path=str(prepared / "own"), modalities=("depth",), columns=())[0]
    assert set(only) == {"id", "key", "captions", "depth"}


def test_features_of_other_kinds_beside_these_are_decoded_too(tmp_path):
    further = {"part": {"inner": np.int64}, "flag": np.bool_}
    examples = [own_example(i) | {"part": {"inner": i}, "flag": i > 0} for i in range(2)]
    write(tmp_path / "own" / "1.0.0", "own", own_features() | further, {"train": [examples]})
    source = Source("train", path=str(tmp_path / "own"))
    for i in range(2):
        got = source[i]
        assert got["part/inner"] == i and bool(got["flag"]) == (i > 0) and got["score"] == i / 2
        assert got["negatives"] == [("swap", ITEMS[i][2][0], "é")] * i
        assert (got["image"], got["captions"]) == (ITEMS[i][1], ITEMS[i][2])
    simple = Source("train", path=str(tmp_path / "own"), columns=("score",))
    assert simple[1]["score"] == 0.5 and simple._shapes == {"score": ()}


def test_class_names_are_captions_where_there_are_none(prepared, tmp_path):
    folder = tmp_path / "1.0.0"
    shutil.copytree(prepared / "foreign" / "1.0.0", folder)
    description = json.loads((folder / "features.json").read_text())
    names = description["featuresDict"]["features"]
    del names["captions"]
    (folder / "features.json").write_text(json.dumps(description))
    source = Source("train", path=str(folder))
    assert all(source[i]["captions"] == [["cat", "dog"][source[i]["label"]]] for i in range(9))
    del names["label"]
    (folder / "features.json").write_text(json.dumps(description))
    with pytest.raises(ConfigError, match=r"caption_keys=None.*image/filename"):
        Source("train", path=str(folder))


def test_neither_tensorflow_nor_jax_is_imported(prepared):
    code = f"""
import sys
from mmjax.data.sources.tfds import Source
assert "tensorflow_datasets" not in sys.modules
source = Source("train", path={str(prepared / "own")!r})
source[0]
assert not {{"tensorflow", "jax", "torch"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Damage.


def test_what_is_no_prepared_data_set(prepared, tmp_path):
    for options, message in (
        ({"path": str(tmp_path)}, "nothing is downloaded"),
        ({"path": str(tmp_path / "none")}, "nothing is downloaded"),
        ({"path": str(prepared), "dataset": "foregn:1.0.0"}, "did you mean 'foreign'"),
        ({"path": str(tmp_path / "none"), "dataset": "mnist"}, "nothing is downloaded"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            Source("train", **options)
        assert "\n" not in str(error.value)
    folder = tmp_path / "1.0.0"
    shutil.copytree(prepared / "own" / "1.0.0", folder)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "riegeli"}))
    with pytest.raises(ConfigError, match=r"riegeli"):
        Source("train", path=str(folder))
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        Source("train", path=str(folder))


def test_missing_torn_and_short_shards(prepared, tmp_path):
    folder = tmp_path / "1.0.0"
    shutil.copytree(prepared / "own" / "1.0.0", folder)
    shard = next(folder.glob("*.array_record-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-50])
    with pytest.raises(ConfigError, match="no readable ArrayRecord file"):
        Source("train", path=str(folder))
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["13"]
    shard.write_bytes(whole)
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ConfigError, match="has 12 records where 13"):
        Source("train", path=str(folder))
    shard.unlink()
    with pytest.raises(ConfigError, match=r"1 of 1 files are missing.*own-train"):
        Source("train", path=str(folder))


def test_a_torn_tfrecord_costs_what_comes_after_the_damage(prepared, tmp_path):
    folder = as_tfrecord(prepared / "own" / "1.0.0", tmp_path / "1.0.0")
    whole = Source("train", path=str(folder))
    expected = [whole[i] for i in range(len(whole))]
    shard = next(folder.glob("*.tfrecord-*"))
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    source = Source("train", path=str(folder))
    assert 0 < len(source) < 12 and len(source) + len(source.unreadable) == 12
    assert {reason for _, reason, _ in source.unreadable} == {"truncated archive"}
    assert [json.dumps(source[i]["captions"]) for i in range(len(source))] == [
        json.dumps(e["captions"]) for e in expected[: len(source)]
    ]
    tail = Source("train[10:]", path=str(folder))
    assert len(tail) == 0 and [reason for _, reason, _ in tail.unreadable] == ["truncated archive"] * len(
        tail.unreadable
    )


def test_damaged_records_are_bad_rows(prepared, tmp_path):
    folder = as_tfrecord(prepared / "own" / "1.0.0", tmp_path / "1.0.0")
    shard = next(folder.glob("*.tfrecord-*"))
    whole = shard.read_bytes()
    random = np.random.default_rng(0)
    bad = 0
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(3):
            data[random.integers(len(data))] = random.integers(256)
        shard.write_bytes(data)
        try:
            source = Source("train", path=str(folder))
        except ConfigError:
            continue
        for i in range(len(source)):
            try:
                assert source[i]["captions"]
            except Unreadable as error:
                assert error.key
                bad += 1
    assert bad > 10


def test_a_pipe_among_its_descriptions_is_not_waited_for(prepared, tmp_path):
    shutil.copytree(prepared / "own", tmp_path / "own")
    (tmp_path / "own" / "1.0.0" / "features.json").unlink()
    os.mkfifo(tmp_path / "own" / "1.0.0" / "features.json")
    with pytest.raises(ConfigError, match=r"is damaged \(.*Not a regular file"):
        Source("train", path=str(tmp_path / "own"))
