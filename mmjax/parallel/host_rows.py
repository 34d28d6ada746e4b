"""Which rows of a global batch each process loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax.sharding import NamedSharding

from mmjax.core.config import ConfigError
from mmjax.core.row_sharding import num_shards


def host_rows(process: int, row_sharding: NamedSharding) -> tuple[int, int]:
    """Returns (index, count): ``process`` loads block ``index`` of ``count`` equal blocks of a batch's rows.

    Processes that share a tensor axis load the same block. If the rows of a block are not contiguous on the devices,
    the batch holds the same examples in another order.
    """
    total = num_shards(row_sharding)
    shards: dict[int, set[int]] = {}
    device_slices: Mapping[Any, Any] = row_sharding.devices_indices_map((total,))
    for device, (rows,) in device_slices.items():
        shards.setdefault(device.process_index, set()).add(rows.indices(total)[0])
    return block_of_process(process, shards)


def block_of_process(process: int, shards: Mapping[int, set[int]]) -> tuple[int, int]:
    """Returns ``host_rows`` for the row shards on each process's devices."""
    blocks = sorted({tuple(sorted(numbers)) for numbers in shards.values()})
    total = sum(map(len, blocks))
    if total > len(set().union(*blocks)) or len({len(block) for block in blocks}) > 1:
        raise ConfigError(
            f"mesh: {len(shards)} processes would hold unequal or partly overlapping rows of the batch; set "
            "mesh.tensor to a divisor or a multiple of the devices per process"
        )
    return blocks.index(tuple(sorted(shards[process]))), len(blocks)
