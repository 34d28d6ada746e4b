"""One pass over the matrix of logits in tiles, on one device or many."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.core.row_sharding import num_shards
from mmjax.objectives.common.ring import Empty, all_gather, ring
from mmjax.objectives.common.tiles import Merge, Tile, first_rows, num_rows, pad_rows, walk_tiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """How a matrix over image rows and text rows is reduced; hashable, because it is a static argument.

    Args:
        chunk: The largest side of a tile.
        ring: On several devices, pass the columns around instead of gathering them.
        row_sharding: Of both sides; None: one device.
    """

    chunk: int
    ring: bool
    row_sharding: NamedSharding | None = None

    def __call__(
        self, tile: Tile, shared: Any, rows: Any, columns: Any, *, empty: tuple[Empty, Empty], merge: Merge
    ) -> tuple[Any, Any]:
        """The results of all tiles for every row and every column."""
        n, m = num_rows(rows), num_rows(columns)
        shards = num_shards(self.row_sharding)
        if shards == 1:
            return walk_tiles(tile, shared, rows, columns, (empty[0](n), empty[1](m)), merge=merge, chunk=self.chunk)
        assert self.row_sharding is not None
        spec = self.row_sharding.spec
        reduce = ring if self.ring else all_gather
        sharded = jax.shard_map(
            functools.partial(reduce, tile, empty=empty, merge=merge, chunk=self.chunk, axes=spec[0]),
            mesh=self.row_sharding.mesh,
            in_specs=(PartitionSpec(), spec, spec),
            out_specs=spec,
            check_vma=False,  # the results start as constants, which would count as replicated
        )
        row_results, column_results = sharded(
            shared, pad_rows(rows, -(-n // shards) * shards), pad_rows(columns, -(-m // shards) * shards)
        )
        return first_rows(row_results, n), first_rows(column_results, m)
