"""Who reads what of a split in a run of several processes, and how each comes to know what all of them found."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from mmjax.data.sample import Unreadable
from mmjax.parallel import collectives


class Share:
    """A process's part in batches of ``rows`` rows under ``sharding``: the rows that its own devices hold.

    ``held`` i64[h] are those rows, in order. ``told`` bool[h] marks the ones that it speaks for: of several processes
    that hold a row (an axis of the mesh that does not split batches) the first one does.
    """

    def __init__(self, rows: int, sharding: NamedSharding | None):
        self._rows = rows
        self._sharding = sharding
        speaker = np.full(rows, -1, np.int64)
        held = np.zeros(rows, bool)
        me = jax.process_index()
        if sharding is None:
            speaker[:], held[:] = me, True
        else:
            places: dict[Any, Any] = dict(sharding.devices_indices_map((rows,)))
            for device, (index, *_) in places.items():
                other = speaker[index]
                speaker[index] = np.where(other < 0, device.process_index, np.minimum(other, device.process_index))
                held[index] |= device.process_index == me
        self.held = np.flatnonzero(held)
        self.told = speaker[self.held] == me

    def place(self, rows: np.ndarray) -> jax.Array:
        """The global batch of which this process has ``rows``, those of ``held``.

        By explicit transfers, a shard at a time: the training loop disallows implicit ones, and no process can fill the
        devices of another.
        """
        if self._sharding is None:
            return jax.device_put(rows)
        shape = (self._rows, *rows.shape[1:])
        shards = []
        places: dict[Any, Any] = dict(self._sharding.addressable_devices_indices_map(shape))
        for device, (index, *_) in places.items():
            first, last, _ = index.indices(self._rows)
            start, stop = np.searchsorted(self.held, (first, last))
            shards.append(jax.device_put(rows[start:stop], device))
        return jax.make_array_from_single_device_arrays(shape, self._sharding, shards)


class Found(NamedTuple):
    """What a split's examples say, but for their pictures."""

    rows: np.ndarray  # i64[n]: where in the split each of them is
    items: list[dict[str, Any]]
    skipped: list[Unreadable]


def told_to_all(found: list[tuple[int, dict[str, Any] | Unreadable]]) -> Found:
    """All that the processes have found, each in its own rows, by row; the same in every process."""
    mine = [
        (row, [what.reason, what.detail, what.key]) if isinstance(what, Unreadable) else (row, _plain(what))
        for row, what in found
    ]
    every = sorted((entry for part in collectives.all_gather(mine) for entry in part), key=lambda entry: entry[0])
    read = [(row, item) for row, item in every if isinstance(item, dict)]
    return Found(
        np.array([row for row, _ in read], np.int64),
        [item for _, item in read],
        [Unreadable(what[0], what[1], key=what[2]) for _, what in every if isinstance(what, list)],
    )


def _plain(value: Any) -> Any:
    """``value`` as JSON can say it: without pictures, numbers of numpy as Python's."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items() if not _is_picture(inner)}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _is_picture(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, np.ndarray) and value.ndim == 3)
