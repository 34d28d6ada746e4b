"""Fewer patches of each image in training: the masking of FLIP and CLIPA."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.augment.common.sequence_dropout import DropRate, Levels, SequenceDropout
from mmjax.core.config import ConfigError

Kind = Literal["random", "grid", "block"]


class Augmentation(SequenceDropout):
    """Drops a fraction p of each image's patches before the first block (FLIP: Li et al. 2023, arXiv:2212.00794).

    Of n patches these stay, drawn again for each image and step::

        random:  max(1, ⌊n (1 - p)⌋) of them, uniformly
        grid:    one of each 2 x 2 window (p = 0.75)
        block:   a square of ⌊√(n (1 - p))⌋ patches a side, anywhere

    Positions are already added, so each patch keeps its own. Class token and registers stay. ``grid`` and ``block``
    are CLIPA's alternatives (Li et al. 2023, arXiv:2305.07017), for square grids of one modality. Training steps cost
    less; evaluation uses whole images. FLIP ends with a short training on whole images: set
    ``drop_rate={"value": 0.5, "stop": STEP}`` and ``levels=1``.

    Args:
        drop_rate: p.
        kind: which patches stay.
        levels: the steps that a changing drop rate is rounded to.
    """

    def __init__(self, *, drop_rate: DropRate = 0.25, kind: Kind = "random", levels: Levels = 4):
        super().__init__(drop_rate=drop_rate, levels=levels)
        self.kind = kind
        if kind == "grid" and not set(self.drop_rates) <= {0.0, 0.75}:
            raise ConfigError(
                f"augment.patch_dropout.drop_rate={drop_rate}: kind='grid' keeps one patch of four; set it to 0.75 "
                "(for a schedule, with levels=1)"
            )

    def choose_patches(self, key: jax.Array, *, rows: int, patches: int, drop_rate: float) -> jax.Array | None:
        """i32[rows, kept], or None if the drop rate is zero."""
        if drop_rate == 0:
            return None
        if self.kind == "random":
            return choose_random(key, rows, patches, drop_rate=drop_rate)
        side = math.isqrt(patches)
        if side * side != patches or (self.kind == "grid" and side % 2):
            even = " of an even side" if self.kind == "grid" else ""
            raise ConfigError(f"augment.patch_dropout.kind={self.kind!r}: {patches} patches are no square grid{even}")
        if self.kind == "grid":
            return choose_of_windows(key, rows, side)
        return choose_block(key, rows, side, drop_rate=drop_rate)


def choose_random(key: jax.Array, rows: int, n: int, *, drop_rate: float) -> jax.Array:
    """i32[rows, kept]: for each row ``max(1, ⌊n (1 - drop_rate)⌋)`` of n indices."""
    _, chosen = jax.lax.top_k(jax.random.uniform(key, (rows, n)), max(1, int(n * (1 - drop_rate))))
    return chosen


def choose_of_windows(key: jax.Array, rows: int, side: int) -> jax.Array:
    """i32[rows, side²/4]: one index of each 2 x 2 window."""
    corner = 2 * jnp.arange(side // 2)
    offset = jax.random.randint(key, (2, rows, side // 2, side // 2), 0, 2)
    return ((corner[:, None] + offset[0]) * side + corner + offset[1]).reshape(rows, -1)


def choose_block(key: jax.Array, rows: int, side: int, *, drop_rate: float) -> jax.Array:
    """i32[rows, kept²]: the indices of a square of ``max(1, ⌊side √(1 - drop_rate)⌋)`` patches a side."""
    keep = max(1, math.floor(side * math.sqrt(1 - drop_rate) + 1e-6))
    corner = jax.random.randint(key, (2, rows, 1, 1), 0, side - keep + 1)
    inner = jnp.arange(keep)
    return ((corner[0] + inner[:, None]) * side + corner[1] + inner).reshape(rows, -1)
