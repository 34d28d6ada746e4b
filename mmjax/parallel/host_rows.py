"""Which rows of a global batch each process loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import NamedSharding

from mmjax.core.config import ConfigError
from mmjax.core.row_sharding import num_shards


@dataclasses.dataclass(frozen=True)
class RowBlock:
    """Block ``index`` of ``count`` equal blocks of a batch's rows."""

    index: int
    count: int


ALL_ROWS = RowBlock(0, 1)


def row_block(process: int, row_sharding: NamedSharding) -> RowBlock:
    """Returns the block of rows that ``process`` loads.

    Processes that share a tensor axis load the same block. If the rows of a block are not contiguous on the devices,
    the batch holds the same examples in another order.
    """
    total = num_shards(row_sharding)
    shards: dict[int, set[int]] = {}
    device_slices: Mapping[Any, Any] = row_sharding.devices_indices_map((total,))
    for device, (rows,) in device_slices.items():
        shards.setdefault(device.process_index, set()).add(rows.indices(total)[0])
    return row_block_of_shards(process, shards)


def row_block_of_shards(process: int, shards: Mapping[int, set[int]]) -> RowBlock:
    """Returns ``row_block`` for the row shards on each process's devices."""
    blocks = sorted({tuple(sorted(numbers)) for numbers in shards.values()})
    total = sum(map(len, blocks))
    if total > len(set().union(*blocks)) or len({len(block) for block in blocks}) > 1:
        raise ConfigError(
            f"mesh: {len(shards)} processes would hold unequal or partly overlapping rows of the batch; set "
            "mesh.tensor to a divisor or a multiple of the devices per process"
        )
    return RowBlock(blocks.index(tuple(sorted(shards[process]))), len(blocks))
