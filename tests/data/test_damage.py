"""Thousands of damaged inputs through the whole pipeline: nothing crashes or hangs, and every skip is counted."""

import collections
import io
import tarfile

import numpy as np
import pytest

from mmjax.data import pictures
from mmjax.data.pipeline import Batches
from mmjax.data.sample import REASONS, Unreadable
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
