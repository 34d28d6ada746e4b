"""Thousands of damaged inputs through the whole pipeline: nothing crashes or hangs, and every skip is counted."""

import collections
import io
import json
import os
import socket
import tarfile

import numpy as np
import pytest

from mmjax.data import pictures
from mmjax.data.pipeline import Batches
from mmjax.data.sample import REASONS, Unreadable
from mmjax.data.sources import captions, folders, tables
from mmjax.data.sources.webdataset import Source
from mmjax.data.transform_chain import TransformChain
from support.pictures import encoded, photograph

BATCH = 50
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def mutated(random, data):
    """One of: as it is, cut, bytes changed, a piece doubled, a piece lost, nothing, something else altogether."""
    data = bytearray(data)
    at, length = int(random.integers(len(data))), int(random.integers(1, 40))
    match int(random.integers(9)):
        case 0 | 1:
            pass
        case 2:
            del data[at:]
        case 3 | 4:
            for _ in range(int(random.integers(1, 8))):
                data[int(random.integers(len(data)))] = int(random.integers(256))
        case 5:
            data[at:at] = data[at : at + length]
        case 6:
            del data[at : at + length]
        case 7:
            data.clear()
        case 8:
            data = bytearray(random.bytes(length))
    return bytes(data)


def texts(random, number):
    return [
        f"picture {number}".encode(), b"", b"  \n ", "naïve 日本".encode(), b"\xff\xfe broken", b"a" * 20_000,
        b"nul\0 in it",
    ][int(random.choice(7, p=[0.7, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05]))]  # fmt: skip


def write(path, count):
    random = np.random.default_rng(count)
    whole = {kind: encoded(photograph(24, 30, seed=i), kind) for i, kind in enumerate(KINDS)}
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            for extension, data in (("jpg", mutated(random, whole[kind])), ("txt", texts(random, number))):
                member = tarfile.TarInfo(f"{number:06d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("count", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_input_is_used_or_counted(tmp_path, monkeypatch, count):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "a.tar", count)
    source = Source("train", path=str(tmp_path / "a.tar"))
    unusable = {}
    for place in range(len(source)):
        try:
            example = source[place]
            pictures.decode(example["image"])
        except Unreadable as error:
            unusable[place] = error.reason
    chain = TransformChain((("random_resized_crop", {}),), image_size=16, modalities=("image",))

    def tokens(texts):
        return np.array([[len(text)] for text in texts], np.int32)

    whole = len(source) // BATCH * BATCH
    batches = Batches(source, tokens, batch_size=BATCH, seed=0, chain=chain, order="stored")
    skipped = collections.Counter()
    stream = batches.stream(threads=2)
    for step in range(whole // BATCH):
        batch = next(stream)
        assert batch["images"]["image"].shape == (BATCH, 16, 16, 3)
        expected = np.arange(step * BATCH, (step + 1) * BATCH)
        same = batch["image_ids"][:, 0] == expected
        for place, is_same in zip(expected.tolist(), same.tolist(), strict=True):
            assert is_same == (place not in unusable), (place, unusable.get(place))
        skipped.update(key for key, _, _ in batch["unreadable"])
        assert {reason for _, reason, _ in batch["unreadable"]} <= set(REASONS)
    stream.close()
    lost = [place for place in unusable if place < whole]
    assert sum(skipped.values()) >= len(lost)  # in a damaged one's place may come a damaged one
    assert len(skipped.keys()) >= len(lost) > count // 4
    assert len(set(unusable.values())) >= 4
    # What the index could not take is listed there; nothing is lost between the two.
    assert len(source) + len(source.unreadable) == count


def hostile_files(folder):
    """Names of files that a table may point to, none of which is a picture; some would hang or fill the memory."""
    folder.mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder / "fifo.png")
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "empty.png").touch()
    (folder / "html.png").write_text("<html>")
    with open(folder / "terabyte.png", "wb") as file:
        file.truncate(1 << 40)
    here = os.getcwd()
    try:  # the path of a socket must be short
        os.chdir(folder)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.png")
    finally:
        os.chdir(here)
    (folder / "a.zip").write_text("no archive")
    own = [path.name for path in sorted(folder.iterdir()) if path.name != "a.zip"] + ["absent.png"]
    absolute = ["/dev/zero", "/dev/tty", "/proc/self/pagemap", "/proc/kmsg", "/etc/passwd", "/", f"{folder}/fifo.png"]
    urls = [
        "zip://a::file:///etc/passwd", f"zip://a.png::{folder}/a.zip", "http://127.0.0.1:9/a.png", "nosuch://a/b",
        "memory://a", "file:///etc/passwd", "reference://", "github://a:b@c/d", "s3://", "simplecache::memory://a",
    ]  # fmt: skip
    return [*own, *absolute, *urls, "../up.png", "a/../../up.png", "nul\0.png", "x" * 5000, "~/x.png", "."]


def whole_batches(source, steps):
    chain = TransformChain((("random_resized_crop", {}),), image_size=16, modalities=("image",))
    batches = Batches(
        source, lambda texts: np.zeros((len(texts), 1), np.int32), batch_size=BATCH, seed=0, chain=chain, order="stored"
    )
    return [batches[step] for step in range(steps)]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "captions"])
def test_whatever_a_table_names_is_used_or_counted(tmp_path, kind):
    bad = hostile_files(tmp_path)
    (tmp_path / "good.png").write_bytes(encoded(photograph(20, 20), "PNG"))
    good = [f"{'./' * i}good.png" for i in range(1, 2 * BATCH - len(bad))] + ["good.png"]
    names = [name for place in range(BATCH) for name in (good[place : place + 1] + bad[place : place + 1])]
    rows = [{"filepath": name, "caption": f"picture {place}"} for place, name in enumerate(names)]
    path = tmp_path / "table"
    if kind == "csv":
        rows = [row for row in rows if "\0" not in row["filepath"]]
        path.write_text("filepath,title\n" + "".join(f"{row['filepath']},{row['caption']}\n" for row in rows))
    else:
        path.write_text(json.dumps(rows) if kind == "captions" else "\n".join(map(json.dumps, rows)))
    source = (captions if kind == "captions" else tables).Source("train", path=str(path))
    assert len(source) + len(source.unreadable) == len(rows)
    batches = whole_batches(source, 2)
    listed = {entry[:2] for batch in batches for entry in batch["unreadable"]} | {e[:2] for e in source.unreadable}
    assert {reason for _, reason in listed} == {
        "bad row", "missing file", "empty image", "corrupt image", "file too large",
    }  # fmt: skip
    assert len({key for key, _ in listed}) >= len(rows) - len(good[:BATCH])
    assert not any("other error" in reason for _, reason in listed)


def test_whatever_lies_in_a_folder_is_used_or_counted(tmp_path):
    hostile_files(tmp_path)
    for number in range(BATCH):
        (tmp_path / f"good{number}.png").write_bytes(encoded(photograph(20, 20), "PNG"))
    for path in list(tmp_path.glob("*.png")):
        path.with_suffix(".txt").write_text("a caption")
    for number, name in enumerate(("fifo", "terabyte", "device", "empty")):
        os.replace(tmp_path / f"{name}.png", tmp_path / f"good{number}.txt")
    source = folders.Source("train", path=str(tmp_path))
    reasons = collections.Counter(reason for batch in whole_batches(source, 2) for _, reason, _ in batch["unreadable"])
    assert reasons.keys() == {"missing file", "no caption", "file too large", "corrupt image"}
