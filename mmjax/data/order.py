"""Which example comes when: arithmetic on row numbers, so that nothing about the order is ever saved.

Rows are drawn in units of ``group`` neighbours. A source of several parts (a mixture) first says which part a unit is
drawn from, by a sequence that keeps every part's count within a few units of its share at all times, then takes that
part's next one. Each part gives every unit once in an epoch of its own, each epoch in another order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from mmjax.core.config import ConfigError

Arrangement = Literal["shuffled", "stored"]

_STREAM = 0  # of random numbers
_LARGEST_TABLE = 1 << 20  # a permutation of as many is 4 MB, and made in some 20 ms
_TURN = 1 << 32
_GOLDEN = 0x9E3779B1  # _TURN by the golden ratio, odd: its multiples fill the circle most evenly


class Part(NamedTuple):
    """One source of a mixture: its name for people, how many examples it has, and its share of the rows."""

    name: str
    size: int
    weight: float


class Order:
    """``places(start, stop)``: where in the source the rows of those numbers are.

    Args:
      parts: their sizes in the order in which they lie in the source; weights need not add up to 1.
      group: neighbours that are drawn together.
      batch_size: rows of a global batch, a multiple of ``group``.
      seed: another seed is another order.
      arrangement: ``shuffled``, or ``stored`` as in the source.
      one_part_a_batch: all rows of a batch come from one part; shares hold over batches.
      distinct: no ``batch_size`` rows in a row of one part have a unit twice, not even across the end of an epoch.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        batch_size: int,
        seed: int,
        group: int = 1,
        arrangement: Arrangement = "shuffled",
        one_part_a_batch: bool = False,
        distinct: bool = False,
    ):
        self._sizes = [part.size // group for part in parts]
        self._first = np.cumsum([0, *(part.size for part in parts)])
        self._group = group
        self._units = batch_size // group
        self._seed = seed
        self._shuffled = arrangement == "shuffled"
        self._by_batch = one_part_a_batch
        self._window = self._units if distinct and self._shuffled else 0
        total = sum(part.weight for part in parts)
        shares = np.cumsum([part.weight / total for part in parts])
        self._bounds = [min(round(float(share) * _TURN), _TURN) for share in shares[:-1]] + [_TURN]
        self._offset = int(np.random.default_rng((seed, _STREAM)).integers(_TURN))
        for part, size in zip(parts, self._sizes, strict=True):
            if self._window and size < 3 * self._window:
                raise ConfigError(
                    f"distinct=True: {part.name} has {part.size} examples, and batches of {batch_size} need "
                    f"{3 * self._window * group} of them to be without repeats; use smaller batches or leave it out"
                )

    def places(self, start: int, stop: int) -> list[int]:
        """The places of rows ``start … stop - 1``, which are of one batch where that matters."""
        first, last = start // self._group, (stop - 1) // self._group
        units = self._of_units(first, last + 1)
        if self._group == 1:
            return units
        return [units[row // self._group - first] + row % self._group for row in range(start, stop)]

    def part(self, place: int) -> range:
        """The places of the part that ``place`` is in."""
        part = int(np.searchsorted(self._first, place, side="right")) - 1
        return range(self._first[part], self._first[part + 1])

    def _of_units(self, start: int, stop: int) -> list[int]:
        if len(self._sizes) == 1:
            return self._drawn(0, np.arange(start, stop)).tolist()
        places = np.empty(stop - start, np.int64)
        if self._by_batch:
            numbers = np.arange(start, stop)
            for batch in range(start // self._units, (stop - 1) // self._units + 1):
                here = numbers // self._units == batch
                part = int(self._parts(batch, batch + 1)[0])
                earlier = self._count(batch, part)
                places[here] = self._drawn(part, earlier * self._units + numbers[here] % self._units)
            return places.tolist()
        parts = self._parts(start, stop)
        for part in np.unique(parts).tolist():
            here = parts == part
            earlier = self._count(start, part)
            places[here] = self._drawn(part, earlier + np.arange(int(here.sum())))
        return places.tolist()

    def _parts(self, start: int, stop: int) -> np.ndarray:
        """The part of each of the draws ``start … stop - 1``."""
        turns = np.array([(number * _GOLDEN + self._offset) % _TURN for number in range(start, stop)])
        return np.searchsorted(self._bounds[:-1], turns, side="right")

    def _count(self, number: int, part: int) -> int:
        """How many of the draws before ``number`` were of ``part``."""
        lower = self._bounds[part - 1] if part else 0
        return self._below(number, self._bounds[part]) - self._below(number, lower)

    def _below(self, number: int, bound: int) -> int:
        # x mod T < b exactly where floor(x / T) - floor((x - b) / T) is 1; the T added keeps sums of what is positive.
        whole = floor_sum(number, _TURN, _GOLDEN, self._offset)
        return whole - floor_sum(number, _TURN, _GOLDEN, self._offset - bound + _TURN) + number

    def _drawn(self, part: int, draws: np.ndarray) -> np.ndarray:
        """The first places of the units that are drawn from ``part`` as its ``draws``-th."""
        size = self._sizes[part]
        if not self._shuffled:
            return self._first[part] + draws % size * self._group
        units = np.empty(len(draws), np.int64)
        epochs = draws // size
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            units[here] = _permuted(size, self._seed, part, epoch, self._window, draws[here] % size)
        return self._first[part] + units * self._group


def shares(source: object, *, rows: int) -> list[str]:
    """For a mixture, a line for each part: its share of the rows, and how many epochs of it ``rows`` rows make."""
    parts: Sequence[Part] = getattr(source, "parts", ())
    total = sum(part.weight for part in parts)
    width = max((len(part.name) for part in parts), default=0)
    return [
        f"{part.name:{width}}  {part.size:>12,} examples  {part.weight / total:6.1%} of the rows  "
        f"{rows * part.weight / total / part.size:.3g} epochs"
        for part in parts
    ]


def floor_sum(n: int, m: int, a: int, b: int) -> int:
    """``Σ_{i<n} floor((a·i + b) / m)`` for a, b ≥ 0 in O(log m) steps: each step is one of Euclid's algorithm."""
    total = 0
    while n:
        total += (n - 1) * n // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        top = a * n + b
        if top < m:
            break
        n, b, m, a = top // m, top % m, a, m
    return total


def _permuted(size: int, seed: int, part: int, epoch: int, window: int, positions: np.ndarray) -> np.ndarray:
    """What stands at ``positions`` of one epoch's order."""
    units = _raw(size, seed, part, epoch, positions)
    if window and epoch:
        swaps = _swaps(size, seed, part, epoch, window)
        if swaps:
            pairs = zip(positions.tolist(), units.tolist(), strict=True)
            return np.array([swaps.get(position, unit) for position, unit in pairs], np.int64)
    return units


def _raw(size: int, seed: int, part: int, epoch: int, positions: np.ndarray) -> np.ndarray:
    if size <= _LARGEST_TABLE:
        return _table(size, seed, part, epoch)[positions]
    # In constant memory, but some microseconds each, and hundreds where the size is small.
    from grain.experimental import index_shuffle

    key = int(np.random.SeedSequence(_stream(seed, part, epoch)).generate_state(1)[0])
    shuffled = [index_shuffle(i, max_index=size - 1, seed=key, rounds=4) for i in positions.tolist()]
    return np.array(shuffled, np.int64)


@functools.lru_cache(maxsize=64)
def _table(size: int, seed: int, part: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(_stream(seed, part, epoch)).permutation(size).astype(np.int32)


def _stream(seed: int, part: int, epoch: int) -> tuple[int, ...]:
    return (seed, _STREAM, epoch, part) if part else (seed, _STREAM, epoch)


@functools.lru_cache(maxsize=64)
def _swaps(size: int, seed: int, part: int, epoch: int, window: int) -> dict[int, int]:
    """Position to unit, where an epoch's order must differ so that its first ``window`` are not the last one's last.

    What collides changes places with something from the middle, so every order still has each unit once and keeps its
    own last ``window``, which the next epoch looks at.
    """
    last = set(_raw(size, seed, part, epoch - 1, np.arange(size - window, size)).tolist())
    # The next window is enough: what of it is in ``last``, and may not take a place, does not collide before it.
    begin = _raw(size, seed, part, epoch, np.arange(2 * window)).tolist()
    free = (position for position in range(window, 2 * window) if begin[position] not in last)
    swaps: dict[int, int] = {}
    for position, unit in enumerate(begin[:window]):
        if unit in last:
            other = next(free)
            swaps[position], swaps[other] = begin[other], unit
    return swaps
