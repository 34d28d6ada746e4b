import collections
import re
import zipfile

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.pipeline import Batches
from mmjax.data.reader import Reader, sample_without_replacement
from mmjax.data.sample import DataError, Unreadable
from mmjax.data.transform_chain import TransformChain


class Source(source.Source):
    """Some examples cannot be read, some only not decoded, some have no caption."""

    def __init__(self, size=40, *, missing=(), garbage=(), silent=(), components=None):
        self.size, self.missing, self.garbage, self.silent = size, set(missing), set(garbage), set(silent)
        if components:
            self.components = components

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index in self.missing:
            raise Unreadable("missing file", "gone", key=f"{index}.jpg")
        image = b"no picture" if index in self.garbage else np.full((4, 4, 3), index, np.uint8)
        captions = [] if index in self.silent else [f"{index} {c}" for c in range(3)]
        return {"id": index, "key": f"{index}.jpg", "image": image, "captions": captions}


def numbers(texts):
    return np.array([[*map(int, text.split()), 9] if text else [-7, -7, 9] for text in texts], np.int32)


def batches(source, **options):
    return Batches(source, numbers, batch_size=8, seed=3, **options)


def test_in_the_place_of_each_broken_example_comes_another_and_it_is_told_of():
    broken = {3: "missing file", 11: "corrupt image", 20: "no caption", 21: "missing file"}
    whole = batches(Source())
    made = batches(Source(missing=(3, 21), garbage=(11,), silent=(20,)))
    seen = collections.Counter()
    for step in range(10):
        a, b = whole[step], made[step]
        ids, expected = b["image_ids"][:, 0], a["image_ids"][:, 0]
        assert not set(ids.tolist()) & broken.keys()
        bad = np.isin(expected, list(broken))
        np.testing.assert_array_equal(ids[~bad], expected[~bad])
        np.testing.assert_array_equal(b["images"]["image"][:, 0, 0, 0], ids)  # its own picture and text
        np.testing.assert_array_equal(b["tokens"][:, 0], ids)
        assert len(b["unreadable"]) >= bad.sum()
        for key, reason, _ in b["unreadable"]:
            assert broken[int(key.removesuffix(".jpg"))] == reason
            seen[reason] += 1
    assert set(seen) == set(broken.values())


def test_substitutes_depend_on_neither_threads_nor_processes_nor_where_one_starts():
    source = Source(missing=range(0, 40, 4))
    whole = batches(source)
    halves = [batches(source, process_index=p, process_count=2) for p in range(2)]
    with_threads = batches(source).stream(start_step=5, threads=3)
    for step in range(5, 9):
        expected = whole[step]
        parts = [half[step] for half in halves]
        for name in ("image_ids", "tokens"):
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), expected[name])
        assert [e for part in parts for e in part["unreadable"]] == expected["unreadable"] != []
        got = next(with_threads)
        np.testing.assert_array_equal(got["image_ids"], expected["image_ids"])
        assert list(map(tuple, got["unreadable"])) == expected["unreadable"]
    with_threads.close()


def test_a_substitute_comes_from_the_same_part_of_a_mixture():
    from mmjax.data.source import Component

    components = (Component("a", 30, 1.0), Component("b", 10, 1.0))
    made = batches(Source(missing=range(30, 36), components=components))
    whole = batches(Source(components=components))
    for step in range(20):
        a, b = (m[step]["image_ids"][:, 0] >= 30 for m in (whole, made))
        np.testing.assert_array_equal(a, b)


def test_when_nothing_can_be_used_it_ends_with_the_reason():
    source = Source(missing=range(40))
    with pytest.raises(
        ConfigError, match=r"none of the source's first examples.*the first one: 0\.jpg: missing file \(gone\)"
    ):
        batches(source)
    source = Source(missing=range(1, 40))
    made = batches(source)
    source.missing = set(range(40))
    with pytest.raises(DataError, match=r"32 examples drawn one after the other.*missing file"):
        made[0]


def test_a_substitute_is_drawn_without_listing_the_places_of_a_huge_part():
    class Huge(Source):
        def __getitem__(self, index):
            if index == 7:
                raise Unreadable("missing file", key="7")
            return {"id": 1, "image": np.zeros((4, 4, 3), np.uint8), "captions": ["1 1"]}

    reader = Reader(Huge(), TransformChain((), image_size=4, modalities=("image",)), seed=0)
    sample, skipped = reader.sample(3, 7, [0.5], component=range(10**13))  # as an array of places: 80 TB
    assert sample.id == 1 and skipped == [("7", "missing file", "")]


def test_examples_without_negatives_among_others_are_padding():
    class Some(Source):
        def __getitem__(self, index):
            false = {} if index % 2 else {"negatives": [("swap", f"{index} 0", f"{index} 9")]}
            return super().__getitem__(index) | false

    batch = batches(Some(), negatives_per_image=1)[0]
    odd = batch["image_ids"][:, 0] % 2 == 1
    assert odd.any() and not odd.all()
    np.testing.assert_array_equal(batch["text_ids"].reshape(8, 2)[:, 1] == -1, odd)


def test_batches_without_repeats_want_the_rows_of_an_image_grouped():
    class Ungrouped(Source):
        rows_share_images = True

    batches(Ungrouped())
    with pytest.raises(ConfigError, match=r"distinct=True.*group=True"):
        batches(Ungrouped(), distinct=True)


class Wrong(Source):
    """Examples that fail in ways that nobody foresaw."""

    errors = (MemoryError(), zipfile.BadZipFile("no zip"), ZeroDivisionError("a bug"), KeyError("x"), OSError(5, "io"))

    def __getitem__(self, index):
        if index < len(self.errors):
            raise self.errors[index]
        example = super().__getitem__(index)
        match index:
            case 10:
                del example["captions"]
            case 11:
                example["image"] = np.zeros((5, 4, 3), np.uint8)
            case 12:
                example["id"] = -1
        return example


def test_any_error_of_one_example_is_counted():
    source = Wrong()
    whole, made = batches(Source()), batches(source)
    listed = {}
    for step in range(10):
        expected, got = whole[step]["image_ids"][:, 0], made[step]["image_ids"][:, 0]
        good = ~np.isin(expected, [*range(5), 10, 11, 12])
        np.testing.assert_array_equal(got[good], expected[good])
        listed |= {key: (reason, detail) for key, reason, detail in made[step]["unreadable"]}
    assert listed["example 0"][0] == listed["10.jpg"][0] == "other error" and listed["example 4"][0] == "missing file"
    assert re.fullmatch(r"ZeroDivisionError: a bug \(test_reader\.py:\d+\)", listed["example 2"][1])
    assert listed["11.jpg"][0] == listed["12.jpg"][0] == "bad row" and "one size" in listed["11.jpg"][1]
    assert len(listed) == 8
    assert [type(problem) for problem in map(problem_of, [source] * 5, range(5))] == [Unreadable] * 5
    assert source.first_readable()["id"] == 5


def problem_of(source, index):
    with pytest.raises(Unreadable) as error:
        source.read(index)
    return error.value


def test_captions_are_drawn_by_their_weights():
    rng = np.random.default_rng(0)
    weights = [1.0, 0.0, 3.0]
    counts = collections.Counter(sample_without_replacement("abc", [u], weights)[0] for u in rng.random(20_000))
    assert set(counts) == {"a", "c"} and abs(counts["c"] / 20_000 - 0.75) < 0.012
    both = [tuple(sample_without_replacement("abc", list(u), weights)) for u in rng.random((2000, 2))]
    assert set(both) == {("a", "c"), ("c", "a")}
    assert sample_without_replacement("abc", [0.5, 0.5, 0.5], weights) in (["a", "c"], ["c", "a"])
    assert sample_without_replacement("ab", [0.999999999], [1.0, 1e-30]) == ["a"]
    assert sample_without_replacement("ab", [0.0, 0.0], [0.0, 1.0]) == ["b"]


def test_negatives_are_asked_of_a_source_that_has_none():
    chain = TransformChain((), image_size=4, modalities=("image",))
    with pytest.raises(ConfigError, match="negatives_per_image=1"):
        Reader(Source(), chain, seed=0, negative_rows=1).first()
