"""Which example comes when, in batches of clusters: a function of the neighbors, the seed and the step alone."""

from __future__ import annotations

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.clusters.table import Clusters

_STREAM = 3  # of random numbers; the order has 0, the pipeline 1, the reader 2
_TRIES = 16  # draws of a row before all rows are looked at


class ClusteredOrder:
    """``places(start, stop)`` are the examples of the rows of those numbers; no batch has an example twice.

    A batch has its clusters one after the other, then the random rows. Where a cluster's neighbors are all in the batch
    already, it is smaller, and there are more random rows.

    Args:
      clusters: of the source.
      batch_size: rows of a global batch.
      seed: another seed gives another order.
    """

    def __init__(self, clusters: Clusters, *, batch_size: int, seed: int):
        self._config, self._neighbors = clusters.config, clusters.neighbors
        self._batch_size, self._seed = batch_size, seed
        self._size = len(self._neighbors)
        if not clusters.config.size <= batch_size <= self._size:
            raise ConfigError(
                f"batch_size={batch_size}: data.clusters needs from size={clusters.config.size} to the {self._size} "
                "examples that there are"
            )
        self._embedded = np.flatnonzero((self._neighbors >= 0).any(axis=1))
        self._last: tuple[int, list[int]] = (-1, [])

    def places(self, start: int, stop: int) -> list[int]:
        """The places of rows ``start … stop - 1``."""
        places: list[int] = []
        for step in range(start // self._batch_size, (stop - 1) // self._batch_size + 1):
            first = step * self._batch_size
            places += self._batch(step)[max(start - first, 0) : stop - first]
        return places

    def component_range(self, place: int) -> range:
        """All places."""
        return range(self._size)

    def _batch(self, step: int) -> list[int]:
        number, batch = self._last  # one reference: threads may read while another writes
        if number != step:
            batch = self._make_batch(step)
            self._last = step, batch
        return batch

    def _make_batch(self, step: int) -> list[int]:
        random, config = np.random.default_rng((self._seed, _STREAM, step)), self._config
        used, rows = np.zeros(self._size, bool), list[int]()

        def take(new: list[int]) -> None:
            used[new] = True
            rows.extend(new)

        for _ in range(config.clusters_at(step, batch_size=self._batch_size)):
            pivot = self._draw(self._embedded, used, random)
            if pivot is None:
                break
            take([pivot])
            near = self._neighbors[pivot]
            near = near[near >= 0]
            near = near[~used[near]][: config.nearest]
            others = min(config.size - 1, len(near))
            chosen = near if len(near) == others else near[np.sort(random.choice(len(near), others, replace=False))]
            take(chosen.tolist())
        missing = self._batch_size - len(rows)
        if 2 * self._batch_size < self._size:  # few are used, so that most draws are free
            while missing:
                drawn = dict.fromkeys(random.integers(self._size, size=missing).tolist())
                take([row for row in drawn if not used[row]])
                missing = self._batch_size - len(rows)
        else:
            take(random.permutation(np.flatnonzero(~used))[:missing].tolist())
        return rows

    @staticmethod
    def _draw(pool: np.ndarray, used: np.ndarray, random: np.random.Generator) -> int | None:
        """A row of ``pool`` that is not used; None if there is none."""
        for _ in range(_TRIES if len(pool) else 0):
            row = int(pool[random.integers(len(pool))])
            if not used[row]:
                return row
        free = pool[~used[pool]]
        return int(free[random.integers(len(free))]) if len(free) else None
