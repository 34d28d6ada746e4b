import functools
import itertools

import grain.experimental
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.config import ConfigError
from mmjax.data import order
from mmjax.data.order import Order, floor_sum, mixture_summary
from mmjax.data.source import Component, Source


def components(*sizes, weights=None):
    weights = weights or sizes
    return [Component(f"part {i}", size, float(w)) for i, (size, w) in enumerate(zip(sizes, weights, strict=True))]


def part_of(places, sizes):
    return np.searchsorted(np.cumsum([0, *sizes]), places, side="right") - 1


@settings(max_examples=200)
@given(st.integers(0, 60), st.integers(1, 50), st.integers(0, 200), st.integers(0, 200))
def test_floor_sum_is_the_sum(n, m, a, b):
    assert floor_sum(n, m, a, b) == sum((a * i + b) // m for i in range(n))


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(3, 40), st.floats(0.05, 20)), min_size=1, max_size=6),
    st.integers(0, 2**31),
    st.integers(0, 10**9),
)
def test_at_any_time_each_part_has_had_its_share(sizes_weights, seed, far):
    sizes, weights = zip(*sizes_weights, strict=True)
    made = Order(components(*sizes, weights=weights), batch_size=8, seed=seed)
    expected = np.array(weights) / sum(weights)
    for start in (0, far * 8):
        drawn = part_of(made.places(start, start + 400), sizes)
        for n in (1, 8, 50, 400):
            counts = np.bincount(drawn[:n], minlength=len(sizes))
            assert np.all(np.abs(counts - n * expected) < 6), (counts, n * expected)


def test_parts_are_drawn_exactly_in_proportion_over_a_million_rows():
    made = Order(components(7, 5, 9, weights=(0.7, 0.2, 0.1)), batch_size=10, seed=4)
    assert [made._count(10**6, c) for c in range(3)] == pytest.approx([700_000, 200_000, 100_000], abs=4)


@pytest.mark.parametrize("arrangement", ["shuffled", "stored"])
def test_each_part_gives_every_example_once_an_epoch_of_its_own(arrangement):
    sizes = (12, 30)
    made = Order(components(*sizes, weights=(2, 1)), batch_size=6, seed=1, group=2, arrangement=arrangement)
    places = np.array(made.places(0, 720))
    drawn = part_of(places, sizes)
    for c, (size, first) in enumerate(zip(sizes, (0, 12), strict=True)):
        mine = places[drawn == c] - first
        epochs = [mine[i : i + size] for i in range(0, len(mine) - size, size)]
        assert len(epochs) > 3
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        different = any(list(a) != list(b) for a, b in itertools.pairwise(epochs))
        assert different == (arrangement == "shuffled")
        assert np.all(mine[::2] % 2 == 0) and np.all(mine[1::2] == mine[::2] + 1)  # groups stay together


@settings(max_examples=40)
@given(st.integers(0, 300), st.integers(1, 60), st.sampled_from([1, 2, 3]), st.booleans())
def test_any_range_of_rows_is_a_piece_of_the_whole(start, length, group, by_batch):
    made = Order(
        components(6 * group, 9 * group, 4 * group, weights=(1, 2, 5)), batch_size=6, seed=2, group=group,
        one_component_per_batch=by_batch,
    )  # fmt: skip
    whole = made.places(0, 400)
    assert made.places(start, min(start + length, 400)) == whole[start : min(start + length, 400)]


def test_a_batch_of_one_part_and_batches_in_proportion():
    sizes = (40, 10, 30)
    made = Order(components(*sizes, weights=(1, 1, 2)), batch_size=5, seed=3, one_component_per_batch=True)
    drawn = [part_of(made.places(5 * b, 5 * b + 5), sizes) for b in range(400)]
    assert all(len(set(batch.tolist())) == 1 for batch in drawn)
    counts = np.bincount([batch[0] for batch in drawn])
    assert np.all(np.abs(counts - [100, 100, 200]) <= 2)
    first = [p for b in range(400) if drawn[b][0] == 1 for p in made.places(5 * b, 5 * b + 5)]
    for at in range(0, 50, 10):
        assert sorted(first[at : at + 10]) == list(range(40, 50))


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize(("size", "batch"), [(12, 4), (13, 4), (64, 8), (30, 10)])
def test_distinct_batches_hold_nothing_twice_across_the_end_of_an_epoch(monkeypatch, size, batch, table):
    order._swaps.cache_clear()
    if not table:
        monkeypatch.setattr(order, "_LARGEST_TABLE", 0)
        monkeypatch.setattr(grain.experimental, "index_shuffle", functools.cache(grain.experimental.index_shuffle))
    plain = Order(components(size), batch_size=batch, seed=5)
    made = Order(components(size), batch_size=batch, seed=5, distinct=True)
    rows = made.places(0, 40 * size)
    # Whatever batches begin with: no window of that length has one twice.
    assert all(len(set(rows[at : at + batch])) == batch for at in range(len(rows) - batch))
    assert all(sorted(rows[at : at + size]) == list(range(size)) for at in range(0, len(rows), size))
    before = plain.places(0, 40 * size)
    assert any(len(set(before[at : at + batch])) < batch for at in range(len(before) - batch))
    assert rows[:size] == before[:size]
    order._swaps.cache_clear()


def test_distinct_needs_three_batches_of_examples():
    with pytest.raises(ConfigError, match=r"part 0 has 23 examples.*batches of 8 need 24"):
        Order(components(23), batch_size=8, seed=0, distinct=True)
    Order(components(24), batch_size=8, seed=0, distinct=True)


def test_the_part_of_a_place():
    made = Order(components(4, 6), batch_size=2, seed=0)
    assert [made.component_range(place) for place in (0, 3, 4, 9)] == [range(4), range(4), range(4, 10), range(4, 10)]


def test_the_shares_in_words():
    class Plain(Source):
        def __len__(self):
            return 1050

        def __getitem__(self, index):
            return {"id": index, "captions": []}

    class Mixed(Plain):
        components = (Component("web", 1000, 3.0), Component("coco", 50, 1.0))

    assert mixture_summary(Mixed(), rows=2000) == [
        "web          1,000 examples   75.0% of the rows  1.5 epochs",
        "coco            50 examples   25.0% of the rows  10 epochs",
    ]
    assert mixture_summary(Plain(), rows=2000) == []
