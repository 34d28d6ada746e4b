import pickle
import threading
import time

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.order import mixture_summary
from mmjax.data.pipeline import Batches
from mmjax.data.sources import mix

SMALL = {"name": "scenes", "image_size": 8, "world": "easy"}


def scenes(size, **more):
    return SMALL | {"size": size, "seed": size} | more


def numbers(texts):
    return np.array([[len(text)] * 4 for text in texts], np.int32)


def test_examples_are_those_of_the_sources_under_ids_of_their_own():
    source = mix.Source("train", sources=(scenes(6, title="a"), scenes(10)))
    assert len(source) == 16 and source.group == 1 and source.modalities == ("image",)
    assert [source[i]["id"] for i in range(16)] == list(range(16))
    from mmjax.data.sources import scenes as module

    for start, size, name in ((0, 6, "a"), (6, 10, "scenes")):
        alone = module.Source("train", size=size, seed=size, image_size=8, world="easy")
        for i in range(size):
            np.testing.assert_array_equal(source[start + i]["image"], alone[i]["image"])
            assert source[start + i]["captions"] == alone[i]["captions"]
            assert source[start + i]["key"] == f"{name}/{i}"
    twin = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(twin[7]["image"], source[7]["image"])
    for index in (16, -1):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize(
    ("shares_", "expected"),
    [
        (({}, {}), [0.375, 0.625]),
        (({"upsample": 5}, {}), [0.75, 0.25]),
        (({"weight": 1}, {"weight": 3}), [0.25, 0.75]),
    ],
)
def test_shares_by_weight_by_factor_and_by_size(shares_, expected):
    source = mix.Source("train", sources=(scenes(6) | shares_[0], scenes(10) | shares_[1]))
    made = Batches(source, numbers, batch_size=4, seed=0)
    drawn = np.concatenate([made[step]["image_ids"][:, 0] for step in range(200)])
    assert np.mean(drawn < 6) == pytest.approx(expected[0], abs=0.005)
    for first, last in ((0, 6), (6, 16)):  # every example of a part equally often
        counts = np.bincount(drawn[(drawn >= first) & (drawn < last)] - first)
        assert counts.max() - counts.min() <= 1
    assert f"{expected[0]:.1%}" in mixture_summary(source, rows=800)[0]


def test_one_source_a_batch():
    source = mix.Source("train", sources=(scenes(8), scenes(20)), one_source_per_batch=True)
    made = Batches(source, numbers, batch_size=4, seed=0)
    kinds = [set((made[step]["image_ids"][:, 0] >= 8).tolist()) for step in range(50)]
    assert all(len(kind) == 1 for kind in kinds)
    assert {False} in kinds and {True} in kinds


def test_thirty_sources_open_and_read_as_one():
    source = mix.Source("train", sources=tuple(scenes(4 + i, title=f"set{i}") for i in range(30)))
    assert len(source.components) == 30 and len(source) == sum(range(4, 34))
    made = Batches(source, numbers, batch_size=60, seed=0)
    ends = np.cumsum([part.size for part in source.components])
    assert len(np.unique(np.searchsorted(ends, made[0]["image_ids"][:, 0], side="right"))) >= 25


def test_thirty_sources_are_read_by_as_many_threads_as_one():
    counts = []
    before = threading.active_count()
    for sources in ((scenes(8),), tuple(scenes(8, title=f"set{i}") for i in range(30))):
        stream = Batches(mix.Source("train", sources=sources), numbers, batch_size=32, seed=0).stream(threads=3)
        next(stream)
        counts.append(threading.active_count() - before)
        stream.close()
        deadline = time.monotonic() + 10
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() == before  # closing leaves none behind
    assert all(0 < count <= 3 + 2 for count in counts)  # two put batches together


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ((), ["at least one"]),
        ((scenes(4, weight=1), scenes(6)), ["scenes#1 has a weight", "scenes#2"]),
        ((scenes(4, weight=1, upsample=2),), ["both"]),
        ((scenes(4, weight=0),), ["weight=0", "positive"]),
        ((scenes(4, weight="much"),), ["weight='much'"]),
        ((scenes(4, twins=True), scenes(4)), ["groups of [1, 2]"]),
        ((scenes(4), SMALL | {"wrld": "easy"}), ["sources[1].wrld", "world"]),
        ((scenes(4), {"size": 4}), ["sources[1].name is missing"]),
    ],
)
def test_errors_name_the_source(sources, words):
    with pytest.raises(ConfigError) as error:
        mix.Source("train", sources=sources)
    assert all(word in str(error.value) for word in words), str(error.value)
