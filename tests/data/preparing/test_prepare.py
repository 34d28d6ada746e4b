import dataclasses
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.open_source import open_source
from mmjax.data.preparing import prepare
from mmjax.data.preparing.plan import SAMPLED, evenly_spaced
from mmjax.data.preparing.reencoding import Reencoding
from mmjax.data.preparing.split_folder import SplitFolder
from support import command, disks
from support.pictures import encoded, opened, photograph
from support.prepared import Source


def written(source, output, *, split="train", asked=("source", 1), keep=None, **options):
    folder = SplitFolder(output, name="birds", version="1.2.0", split=split)
    return prepare.prepare(source, folder, asked={"source": asked}, reencoding=keep or Reencoding(), **options)


def files(output):
    """Names and bytes of what was published."""
    return {path.name: path.read_bytes() for path in (output / "birds/1.2.0").iterdir() if path.is_file()}


def test_what_is_read_back_is_what_the_source_gave(tmp_path):
    source = Source(12)
    summary = written(source, tmp_path, shards=5)
    assert (summary.examples, summary.captions, summary.unreadable) == (12, 4 * (1 + 2 + 3), {})
    assert summary.bytes_in == sum(len(source[i]["image"]) for i in range(12))
    read = open_source({"name": "tfds", "path": str(tmp_path / "birds")}, split="train")
    assert len(read) == 12 and read.class_names == list(source.class_names)
    for index in range(12):
        given, got = source[index], read[index]
        np.testing.assert_array_equal(np.reshape(got.pop("boxes"), (-1, 4)), given.pop("boxes"))
        assert got.pop("tags") == given.pop("tags") and list(got.pop("negatives")) == given.pop("negatives")
        assert got == given


def test_tfds_itself_reads_it(tmp_path):
    source = Source(12)
    written(source, tmp_path, shards=3)
    builder = tfds.builder_from_directory(str(tmp_path / "birds/1.2.0"))
    info = builder.info
    assert (info.name, str(info.version), info.splits["train"].num_examples) == ("birds", "1.2.0", 12)
    assert info.splits["train"].shard_lengths == [4, 4, 4]
    assert info.features["label"].names == list(source.class_names)
    data = builder.as_data_source("train[50%:]", decoders={"image": tfds.decode.SkipDecoding()})
    for index in range(6, 12):
        got, given = data[index - 6], source[index]
        assert [text.decode() for text in got["captions"]] == given["captions"]
        assert got["image"] == given["image"] and got["key"].decode() == given["key"]
        assert (got["id"], got["label"], got["score"], got["count"]) == (index, index % 3, index / 4, index)
        np.testing.assert_array_equal(got["boxes"], given["boxes"])
        assert list(got["negatives"]["false"]) == [false.encode() for _, _, false in given["negatives"]]
    decoded = builder.as_data_source("train")[1]["image"]
    np.testing.assert_array_equal(decoded, opened(source[1]["image"]))


def test_pixels_are_kept_exactly(tmp_path):
    source = open_source({"name": "scenes", "world": "easy", "size": 6}, split="val")
    written(source, tmp_path, split="val", shards=2)
    data = tfds.builder_from_directory(str(tmp_path / "birds/1.2.0")).as_data_source("val")
    for index in range(6):
        np.testing.assert_array_equal(data[index]["image"], source[index]["image"])


def test_what_cannot_be_used_is_left_out_and_listed(tmp_path):
    source = Source(10, broken=(0, 7))
    source.unreadable = [("birds/x.jpg", "duplicate key", "")]
    torn = dict(source[4], image=source[4]["image"][:300])
    empty = dict(source[5], image=b"")
    mute = dict(source[2], captions=[])
    source = Patched(source, {4: torn, 5: empty, 2: mute})
    summary = written(source, tmp_path, shards=2)
    assert summary.examples == 5
    assert summary.unreadable == {
        "missing file": 2, "duplicate key": 1, "truncated image": 1, "empty image": 1, "no caption": 1,
    }  # fmt: skip
    assert summary.unreadable_fraction == pytest.approx(6 / 11)
    lines = [json.loads(line) for line in files(tmp_path)["unreadable.jsonl"].decode().splitlines()]
    assert all(set(line) == {"split", "key", "reason", "detail"} for line in lines)
    assert {(line["key"], line["reason"]) for line in lines} == {
        ("birds/x.jpg", "duplicate key"), ("birds/000.jpg", "missing file"), ("birds/002.jpg", "no caption"),
        ("birds/004.jpg", "truncated image"), ("birds/005.jpg", "empty image"), ("birds/007.jpg", "missing file"),
    }  # fmt: skip
    read = open_source({"name": "tfds", "path": str(tmp_path / "birds")}, split="train")
    assert [read[i]["id"] for i in range(len(read))] == [1, 3, 6, 8, 9]
    assert "missing file 2" in prepare.text(summary)


class Patched(source.Source):
    """A source with some examples exchanged."""

    def __init__(self, source, changes):
        self.source, self.changes = source, changes
        self.modalities, self.unreadable = source.modalities, source.unreadable

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.changes[index] if index in self.changes else self.source[index]


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"none of the source's examples.*missing file"):
        written(Source(3, broken=(0, 1, 2)), tmp_path)


def test_workers_write_the_same_bytes(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        written(Source(11, broken=(5,)), tmp_path / name, shards=4, workers=workers)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_what_was_finished_is_not_made_again(tmp_path, messages):
    written(Source(12), tmp_path, shards=4)
    before = files(tmp_path)
    folder = tmp_path / "birds/1.2.0"
    lost, torn = (folder / f"birds-train.array_record-0000{k}-of-00004" for k in (1, 2))
    lost.unlink()
    torn.write_bytes(torn.read_bytes()[:-1])
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("birds-*")}
    summary = written(Source(12), tmp_path, shards=4)
    assert files(tmp_path) == before and messages == ["2 of 4 shards exist already"] and summary.already == 2
    changed = {p.name for p in folder.glob("birds-*") if times.get(p.name) != p.stat().st_mtime_ns}
    assert changed == {lost.name, torn.name}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_stops_it_leaves_the_finished_shards(workers, tmp_path, messages):
    begun = time.monotonic()
    looked_at = evenly_spaced(300, SAMPLED)
    fails = next(index for index in range(160, 300) if index not in looked_at)
    with pytest.raises(KeyboardInterrupt, match="the machine goes"):
        written(Source(300, slow=0.001, fails=fails), tmp_path, shards=6, workers=workers)
    assert time.monotonic() - begun < 20
    folder = tmp_path / "birds/1.2.0"
    finished = {path.name: path.read_bytes() for path in folder.glob("birds-*")}
    assert 1 <= len(finished) < 6 and not (folder / "dataset_info.json").exists()
    assert written(Source(300), tmp_path, shards=6).examples == 300
    assert messages == [f"{len(finished)} of 6 shards exist already"]
    assert files(tmp_path).items() > finished.items()


def test_a_worker_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_STOP_SECONDS", 0.3)
    read = evenly_spaced(300, SAMPLED)
    fails, hangs = (next(index for index in range(first, 300) if index not in read) for first in (20, 170))
    with pytest.raises(KeyboardInterrupt, match="the machine goes"):
        written(Source(300, slow=0.001, fails=fails, hangs=hangs), tmp_path, shards=2, workers=2)
    begun = time.monotonic()
    while multiprocessing.active_children() and time.monotonic() - begun < 20:
        time.sleep(0.01)
    assert not multiprocessing.active_children()


KILLED = """
import sys
from mmjax.data.preparing import prepare
from mmjax.data.preparing.split_folder import SplitFolder
from mmjax.data.preparing.reencoding import Reencoding
from support.prepared import Source

if __name__ == "__main__":
    folder = SplitFolder(sys.argv[1], name="birds", version="1.2.0", split="train")
    prepare.prepare(
        Source(40, slow=0.05), folder, asked={"source": ["source", 1]}, reencoding=Reencoding(), shards=10, workers=2
    )
"""


def test_after_a_kill_the_same_command_ends_with_the_same_bytes(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    process = subprocess.Popen([sys.executable, script, tmp_path / "out"], env=command.environment())
    own = tmp_path / "out/birds/1.2.0/.prepare/train"
    deadline = time.monotonic() + 60
    while len(list(own.glob("0*.json"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = list(own.glob("0*.json"))
    assert len(finished) < 10 and not (tmp_path / "out/birds/1.2.0/dataset_info.json").exists()
    # Workers end with the process that they work for, and what they had begun is nobody's.
    while any(_alive(int(path.name.split(".")[-2])) for path in own.glob("*.tmp")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    written(Source(40), tmp_path / "out", shards=10)
    written(Source(40), tmp_path / "undisturbed", shards=10)
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")
    assert not list(own.glob("*.tmp"))


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().split()[2] != "Z"


def test_a_folder_begun_with_other_settings_is_refused_by_name(tmp_path):
    written(Source(12), tmp_path, shards=4)
    before = files(tmp_path)
    for change, mentions in (
        ({"shards": 3}, "shards is 3.*begun with 4"),
        ({"shards": 4, "keep": Reencoding(quality=80)}, "quality is 80.*begun with 90"),
        ({"shards": 4, "limit": 5}, "limit is 5"),
        ({"shards": 4, "asked": ("source", 2)}, r"source is \['source', 2\]"),
    ):
        with pytest.raises(ConfigError, match=mentions):
            written(Source(12), tmp_path, **change)
    with pytest.raises(ConfigError, match="examples is 13"):
        written(Source(13), tmp_path, shards=4)
    assert files(tmp_path) == before


def test_a_folder_with_other_things_in_it_is_refused(tmp_path):
    (tmp_path / "birds/1.2.0").mkdir(parents=True)
    (tmp_path / "birds/1.2.0/thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        written(Source(2), tmp_path)
    assert list(files(tmp_path)) == ["thesis.txt"]


def test_two_at_a_time_do_not_write_one_split(tmp_path):
    folder = SplitFolder(tmp_path, name="birds", version="1.2.0", split="train")
    with folder.locked(), pytest.raises(ConfigError, match="another process"):
        written(Source(2), tmp_path)
    assert written(Source(2), tmp_path).examples == 2


def test_splits_are_added_one_by_one(tmp_path):
    written(Source(6, broken=(1,)), tmp_path, shards=2)
    written(Source(5, broken=(3,)), tmp_path, split="test", shards=1)
    splits = tfds.builder_from_directory(str(tmp_path / "birds/1.2.0")).info.splits
    assert {name: info.shard_lengths for name, info in splits.items()} == {"train": [2, 3], "test": [4]}
    lines = [json.loads(line) for line in files(tmp_path)["unreadable.jsonl"].decode().splitlines()]
    assert sorted((line["split"], line["key"]) for line in lines) == [
        ("test", "birds/003.jpg"), ("train", "birds/001.jpg"),
    ]  # fmt: skip


def test_all_splits_have_the_fields_of_the_first(tmp_path):
    plain = open_source({"name": "scenes", "world": "easy", "size": 8}, split="train")
    negatives = open_source({"name": "scenes", "world": "easy", "size": 8}, split="val")
    written(plain, tmp_path / "a", shards=1)
    with pytest.raises(ConfigError, match=r"negatives.*split train.*--drop=negatives"):
        written(negatives, tmp_path / "a", split="val", shards=1)
    written(negatives, tmp_path / "a", split="val", shards=1, drop=("negatives",))
    written(negatives, tmp_path / "b", split="val", shards=1)
    written(plain, tmp_path / "b", shards=1)
    builder = tfds.builder_from_directory(str(tmp_path / "b/birds/1.2.0"))
    assert builder.as_data_source("train")[3]["negatives"] == {"kind": [], "true": [], "false": []}
    read = open_source({"name": "tfds", "path": str(tmp_path / "b/birds")}, split="val")
    assert list(read[3]["negatives"]) == negatives[3]["negatives"]
    labelled = Source(4)
    with pytest.raises(ConfigError, match="another --name"):
        written(labelled, tmp_path / "b", split="test", shards=1)


def test_fields_that_cannot_be_stored_are_named(tmp_path):
    source = Source(4)
    odd = [dict(source[i], nested={"a": 1}, mixed="x" if i else 1, none=None) for i in range(4)]
    summary = written(Patched(source, dict(enumerate(odd))), tmp_path, drop=("tags",))
    assert set(summary.left_out) == {"nested", "mixed", "none", "tags"}
    read = open_source({"name": "tfds", "path": str(tmp_path / "birds")}, split="train")[2]
    assert "score" in read and not set(summary.left_out) & set(read)


def test_a_value_of_the_wrong_type_is_a_bad_row(tmp_path):
    source = Source(300)
    odd = {1: dict(source[1], count="many"), 3: {k: v for k, v in source[3].items() if k != "label"}}
    summary = written(Patched(source, odd), tmp_path, shards=1)  # neither is among those that are looked at first
    assert summary.unreadable == {"bad row": 2} and summary.examples == 298


def test_the_number_of_shards_follows_from_their_size(tmp_path):
    noisy = Source(24, height=400, width=400)
    size = sum(len(noisy[i]["image"]) for i in range(24))
    summary = written(noisy, tmp_path, shard_mib=1)
    assert summary.shards == round(size / 2**20) > 1
    assert written(Source(700), tmp_path / "many").shards == 2  # something to do for two processes


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        ({"shards": 13}, "only 12 examples"), ({"shards": 0}, "--shards=0"), ({"workers": 0}, "--workers=0"),
        ({"limit": 0}, "--limit=0"), ({"shard_mib": 0}, "--shard-mib=0"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be(options, mentions, tmp_path):
    with pytest.raises(ConfigError, match=mentions):
        written(Source(12), tmp_path, **options)
    assert not (tmp_path / "birds").exists() or not files(tmp_path)


@pytest.mark.parametrize(
    "names", [{"name": "a b"}, {"name": "../x"}, {"version": "1"}, {"split": "a/b"}, {"split": "train[:5]"}]
)
def test_names_that_tfds_would_not_find(names, tmp_path):
    with pytest.raises(ConfigError):
        SplitFolder(tmp_path, **{"name": "birds", "version": "1.0.0", "split": "train", **names})


def test_limit_takes_the_first(tmp_path):
    assert written(Source(12), tmp_path, limit=5, shards=2).examples == 5
    read = open_source({"name": "tfds", "path": str(tmp_path / "birds")}, split="train")
    assert [read[i]["id"] for i in range(len(read))] == [0, 1, 2, 3, 4]


def test_pictures_are_made_smaller_and_never_larger():
    large, small = encoded(photograph(120, 160), quality=95), encoded(photograph(40, 60), quality=95)
    shrink = Reencoding(image_size=60)
    got = opened(shrink(large))
    assert got.size == (80, 60)
    reduced = opened(large).resize((80, 60), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(got, opened(encoded(reduced, quality=90)))
    assert shrink(small) == small
    assert len(Reencoding(image_size=60, quality=30)(large)) < len(shrink(large))
    lossless = encoded(photograph(120, 160), "PNG")
    np.testing.assert_array_equal(
        opened(shrink(lossless)), np.asarray(opened(lossless).resize((80, 60), Image.Resampling.BICUBIC))
    )


def test_formats():
    jpeg, png = (encoded(photograph(20, 30), kind) for kind in ("JPEG", "PNG"))
    bmp = encoded(photograph(20, 30), "BMP")
    assert Reencoding()(bmp) == bmp and Reencoding(format="jpeg")(jpeg) == jpeg
    for data in (jpeg, png, bmp):
        np.testing.assert_array_equal(opened(Reencoding(format="png")(data)), opened(data))
    assert Reencoding(format="webp")(png)[8:12] == b"WEBP" and Reencoding(format="jpeg")(png)[:2] == b"\xff\xd8"
    pixels = photograph(20, 30)
    np.testing.assert_array_equal(opened(Reencoding()(pixels)), pixels)
    for wrong in ({"format": "gif"}, {"quality": 0}, {"image_size": -1}):
        with pytest.raises(ConfigError):
            Reencoding(**wrong)


def test_reencoding_turns_pictures_upright():
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(photograph(80, 120), exif=exif)
    assert Reencoding()(turned) == turned
    for keep in (Reencoding(format="png"), Reencoding(image_size=40)):
        with Image.open(io.BytesIO(keep(turned))) as image:
            assert image.getexif().get(0x0112, 1) == 1 and image.width < image.height


def test_reencoding_keeps_transparency_where_the_format_can():
    pixels = np.full((80, 80, 4), (10, 20, 30, 255), np.uint8)
    pixels[:, :40, 3] = 0
    data = encoded(Image.fromarray(pixels), "PNG")
    for format in ("keep", "png", "webp"):
        small = Image.open(io.BytesIO(Reencoding(image_size=20, format=format)(data)))
        assert small.mode == "RGBA" and small.size == (20, 20)
        assert small.getpixel((2, 10))[3] == 0 and small.getpixel((17, 10))[3] == 255
    assert opened(Reencoding(format="jpeg")(data)).getpixel((2, 40)) == (255, 255, 255)
    opaque = encoded(photograph(80, 80), "PNG")
    assert Image.open(io.BytesIO(Reencoding(image_size=20)(opaque))).mode == "RGB"


def test_a_summary_can_be_json(tmp_path):
    assert json.loads(json.dumps(dataclasses.asdict(written(Source(3), tmp_path))))["examples"] == 3


def test_a_full_disk_is_one_line_and_the_finished_shards_stay(tmp_path, messages):
    source, folder = Source(12), tmp_path / "disk"
    written(source, tmp_path / "whole", shards=4)
    with disks.mounted(folder, size="4m") as disk:
        (filler := disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - 40_000))
        with pytest.raises(ConfigError, match=r"^--output: .* cannot be written \(.*No space.*\); make room") as caught:
            written(source, disk, shards=4)
        assert "\n" not in str(caught.value) and not list(disk.rglob("*.tmp"))
        filler.unlink()
        assert written(source, disk, shards=4).examples == 12 and files(disk) == files(tmp_path / "whole")
    assert not any("without a word" in line for line in messages)


def test_a_start_after_a_killed_one_names_memory(tmp_path, messages):
    written(Source(4), tmp_path, shards=1)
    (tmp_path / "birds/1.2.0/.prepare/train/lock").write_text("77 on here")
    written(Source(4), tmp_path, shards=1)
    assert "process 77 on here" in messages[0] and "memory" in messages[0] and "--workers" in messages[0]
