"""Which example comes when: a pure function of the row number, so there is no state to save.

Rows are drawn in units of ``group`` neighbors. Of a source with several components (a mixture), a sequence first says
which component a unit is drawn from, so that the count of each component stays within a few units of its fraction at
all times; then that component's next unit is drawn. Each component yields every unit once per epoch of its own, and
each epoch has another order.

Grain's own shuffle, repeat and mix were tried instead (0.2.18, one busy core). They can also be indexed and resumed,
and keep the fractions closer: within 1.1 rows, here within 3.7. But they look up one row at a time: a batch of 1,024
took 23 ms of 400,000 examples (here 0.8 ms) and 22 ms of 15 million (here 9 ms). And batches are not ``distinct``: 200
batches of 1,024 of 5,000 examples had 1,455 repeats.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.clusters.order import ClusteredOrder
from mmjax.data.clusters.table import Clusters
from mmjax.data.source import Component, Source

Arrangement = Literal["shuffled", "stored"]

_STREAM = 0  # of random numbers; the pipeline has 1, the reader 2
_LARGEST_TABLE = 1 << 20  # a permutation of this many is 4 MB and takes 20 ms
_CIRCLE = 1 << 32
_GOLDEN = 0x9E3779B1  # _CIRCLE divided by the golden ratio, odd: its multiples fill the circle most evenly


class Order:
    """``places(start, stop)`` are the indices into the source of the rows of those numbers.

    Args:
      components: in the order in which they lie in the source; weights need not add up to 1.
      group: neighbors that are drawn together.
      batch_size: rows of a global batch, a multiple of ``group``.
      seed: another seed gives another order.
      arrangement: ``shuffled``, or ``stored`` for the source's own order.
      one_component_per_batch: all rows of a batch come from one component; weights then hold over batches.
      distinct: of one component, ``batch_size`` consecutive rows have no unit twice, even across epochs.
    """

    def __init__(
        self,
        components: Sequence[Component],
        *,
        batch_size: int,
        seed: int,
        group: int = 1,
        arrangement: Arrangement = "shuffled",
        one_component_per_batch: bool = False,
        distinct: bool = False,
    ):
        self._sizes = [component.size // group for component in components]
        self._first = np.cumsum([0, *(component.size for component in components)])
        self._group = group
        self._units = batch_size // group
        self._seed = seed
        self._shuffled = arrangement == "shuffled"
        self._one_per_batch = one_component_per_batch
        self._window = self._units if distinct and self._shuffled else 0
        total = sum(component.weight for component in components)
        cumulative = np.cumsum([component.weight / total for component in components])
        self._bounds = [min(round(float(c) * _CIRCLE), _CIRCLE) for c in cumulative[:-1]] + [_CIRCLE]
        self._offset = int(np.random.default_rng((seed, _STREAM)).integers(_CIRCLE))
        for component, size in zip(components, self._sizes, strict=True):
            if self._window and size < 3 * self._window:
                raise ConfigError(
                    f"distinct=True: {component.name} has {component.size} examples, and batches of {batch_size} need "
                    f"{3 * self._window * group} of them to be without repeats; use smaller batches or leave it out"
                )

    def places(self, start: int, stop: int) -> list[int]:
        """The places of rows ``start … stop - 1``."""
        first, last = start // self._group, (stop - 1) // self._group
        units = self._places_of_units(first, last + 1)
        if self._group == 1:
            return units
        return [units[row // self._group - first] + row % self._group for row in range(start, stop)]

    def component_range(self, place: int) -> range:
        """All places of the component that ``place`` belongs to."""
        index = int(np.searchsorted(self._first, place, side="right")) - 1
        return range(self._first[index], self._first[index + 1])

    def _places_of_units(self, start: int, stop: int) -> list[int]:
        if len(self._sizes) == 1:
            return self._draw(0, np.arange(start, stop)).tolist()
        places = np.empty(stop - start, np.int64)
        if self._one_per_batch:
            numbers = np.arange(start, stop)
            for batch in range(start // self._units, (stop - 1) // self._units + 1):
                mask = numbers // self._units == batch
                component = int(self._components(batch, batch + 1)[0])
                earlier = self._count(batch, component)
                places[mask] = self._draw(component, earlier * self._units + numbers[mask] % self._units)
            return places.tolist()
        components = self._components(start, stop)
        for component in np.unique(components).tolist():
            mask = components == component
            earlier = self._count(start, component)
            places[mask] = self._draw(component, earlier + np.arange(int(mask.sum())))
        return places.tolist()

    def _components(self, start: int, stop: int) -> np.ndarray:
        """The component of each of the draws ``start … stop - 1``."""
        angles = np.array([(number * _GOLDEN + self._offset) % _CIRCLE for number in range(start, stop)])
        return np.searchsorted(self._bounds[:-1], angles, side="right")

    def _count(self, number: int, component: int) -> int:
        """How many of the draws before ``number`` were from ``component``."""
        lower = self._bounds[component - 1] if component else 0
        return self._count_below(number, self._bounds[component]) - self._count_below(number, lower)

    def _count_below(self, number: int, bound: int) -> int:
        # x mod T < b exactly where floor(x / T) - floor((x - b) / T) is 1; adding T keeps the argument positive.
        whole = floor_sum(number, _CIRCLE, _GOLDEN, self._offset)
        return whole - floor_sum(number, _CIRCLE, _GOLDEN, self._offset - bound + _CIRCLE) + number

    def _draw(self, component: int, draws: np.ndarray) -> np.ndarray:
        """The first places of the units that ``component`` yields as its ``draws``-th."""
        size = self._sizes[component]
        if not self._shuffled:
            return self._first[component] + draws % size * self._group
        units = np.empty(len(draws), np.int64)
        epochs = draws // size
        for epoch in np.unique(epochs).tolist():
            mask = epochs == epoch
            units[mask] = _permuted(size, self._seed, component, epoch, self._window, draws[mask] % size)
        return self._first[component] + units * self._group


def make_order(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    arrangement: Arrangement,
    distinct: bool = False,
    clusters: Clusters | None = None,
) -> Order | ClusteredOrder:
    """The order of a source's examples: that of its ``clusters``, or of ``arrangement``."""
    if clusters is not None:
        if arrangement == "stored":
            raise ConfigError("order='stored': clusters have an order of their own; leave one of them out")
        return ClusteredOrder(clusters, batch_size=batch_size, seed=seed)
    return Order(
        source.components or (Component("the source", len(source), 1.0),),
        batch_size=batch_size,
        seed=seed,
        group=source.group,
        arrangement=arrangement,
        one_component_per_batch=source.one_source_per_batch,
        distinct=distinct,
    )


def mixture_summary(source: Source, *, rows: int) -> list[str]:
    """For a mixture, one line per component: its fraction of the rows, and how many epochs ``rows`` rows are."""
    components = source.components
    total = sum(component.weight for component in components)
    width = max((len(component.name) for component in components), default=0)
    return [
        f"{name:{width}}  {size:>12,} examples  {weight / total:6.1%} of the rows  "
        f"{rows * weight / total / size:.3g} epochs"
        for name, size, weight in components
    ]


def floor_sum(n: int, m: int, a: int, b: int) -> int:
    """``Σ_{i<n} floor((a·i + b) / m)`` for a, b ≥ 0 in O(log m) steps, by Euclid's algorithm."""
    total = 0
    while n:
        total += (n - 1) * n // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        top = a * n + b
        if top < m:
            break
        n, b, m, a = top // m, top % m, a, m
    return total


def _permuted(size: int, seed: int, component: int, epoch: int, window: int, positions: np.ndarray) -> np.ndarray:
    """The units at ``positions`` of one epoch's order."""
    units = _permutation(size, seed, component, epoch, positions)
    if window and epoch:
        swaps = _swaps(size, seed, component, epoch, window)
        if swaps:
            pairs = zip(positions.tolist(), units.tolist(), strict=True)
            return np.array([swaps.get(position, unit) for position, unit in pairs], np.int64)
    return units


def _permutation(size: int, seed: int, component: int, epoch: int, positions: np.ndarray) -> np.ndarray:
    if size <= _LARGEST_TABLE:
        return _table(size, seed, component, epoch)[positions]
    # In constant memory, but some microseconds each, and hundreds where the size is small.
    from grain.experimental import index_shuffle

    key = int(np.random.SeedSequence(_entropy(seed, component, epoch)).generate_state(1)[0])
    shuffled = [index_shuffle(i, max_index=size - 1, seed=key, rounds=4) for i in positions.tolist()]
    return np.array(shuffled, np.int64)


@functools.lru_cache(maxsize=64)
def _table(size: int, seed: int, component: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(_entropy(seed, component, epoch)).permutation(size).astype(np.int32)


def _entropy(seed: int, component: int, epoch: int) -> tuple[int, ...]:
    return (seed, _STREAM, epoch, component) if component else (seed, _STREAM, epoch)


@functools.lru_cache(maxsize=64)
def _swaps(size: int, seed: int, component: int, epoch: int, window: int) -> dict[int, int]:
    """Position to unit, where an epoch's order must change so that its first ``window`` repeat none of the last.

    A unit that repeats changes places with one of the next ``window``. So every order still has each unit once, and its
    own last ``window``, which the next epoch looks at, stay as they are.
    """
    last = set(_permutation(size, seed, component, epoch - 1, np.arange(size - window, size)).tolist())
    # ``last`` has ``window`` units: if k repeat, at most window - k lie in the next window, so k are free there.
    begin = _permutation(size, seed, component, epoch, np.arange(2 * window)).tolist()
    free = (position for position in range(window, 2 * window) if begin[position] not in last)
    swaps: dict[int, int] = {}
    for position, unit in enumerate(begin[:window]):
        if unit in last:
            other = next(free)
            swaps[position], swaps[other] = begin[other], unit
    return swaps
