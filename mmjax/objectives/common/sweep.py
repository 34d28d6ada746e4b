"""One pass over the matrix of logits, on one device or many."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.core.row_sharding import num_shards
from mmjax.objectives.common.ring import Empty, gathered, ring
from mmjax.objectives.common.tiles import Merge, Tile, count, padded, shortened, walk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """How a matrix over image and text rows is walked; hashable, as a static argument has to be."""

    chunk: int
    ring: bool
    row_sharding: NamedSharding | None = None  # of both sides; None: all on one device

    def __call__(
        self, tile: Tile, shared: Any, rows: Any, columns: Any, *, empty: tuple[Empty, Empty], merge: Merge
    ) -> tuple[Any, Any]:
        """What all tiles together find of every row and of every column."""
        n, m = count(rows), count(columns)
        shards = num_shards(self.row_sharding)
        if shards == 1:
            return walk(tile, shared, rows, columns, (empty[0](n), empty[1](m)), merge=merge, chunk=self.chunk)
        assert self.row_sharding is not None
        share = self.row_sharding.spec
        island = jax.shard_map(
            functools.partial(
                ring if self.ring else gathered, tile, empty=empty, merge=merge, chunk=self.chunk, axes=share[0]
            ),
            mesh=self.row_sharding.mesh,
            in_specs=(PartitionSpec(), share, share),
            out_specs=share,
            check_vma=False,  # the accumulators start as constants, which count as equal on all devices
        )
        of_rows, of_columns = island(
            shared, padded(rows, -(-n // shards) * shards), padded(columns, -(-m // shards) * shards)
        )
        return shortened(of_rows, n), shortened(of_columns, m)
