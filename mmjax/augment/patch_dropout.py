"""Fewer patches of each image in training: FLIP's masking, and CLIPA's."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.augment.common.schedules import Strength
from mmjax.augment.common.sequence_dropout import SequenceDropout
from mmjax.core.config import ConfigError

Kind = Literal["random", "grid", "block"]


class Augmentation(SequenceDropout):
    """Drops a share p of the patches before the first block (FLIP: Li et al. 2023, arXiv:2212.00794).

    Of n patches, anew for each image and step, with positions already added, so that each keeps its own::

        random:  max(1, ⌊n (1 - p)⌋) of them, every subset alike
        grid:    one of each 2 x 2 window (p = 0.75)
        block:   a square of ⌊√(n (1 - p))⌋ patches a side, at any place

    Class token and registers stay. The last two are CLIPA's alternatives (Li et al. 2023, arXiv:2305.07017), for
    square grids of one modality. The towers see nothing else in training, so the step costs less; evaluation sees
    whole images. FLIP ends with a short training on whole images: ``share={"value": 0.5, "stop": STEP}``, with
    ``levels=1``.

    Options: ``share`` p, ``kind``, ``levels`` in which a share that changes is rounded, beside 0.
    """

    def __init__(self, *, share: Strength = 0.25, kind: Kind = "random", levels: int = 4):
        super().__init__(share=share, levels=levels)
        self.kind = kind
        if kind == "grid" and not set(self.shares) <= {0.0, 0.75}:
            raise ConfigError(
                f"augment.patch_dropout.share={share}: kind='grid' keeps one patch of four; set it to 0.75 (and "
                "levels=1 where it is a schedule)"
            )

    def patches(self, key: jax.Array, *, rows: int, patches: int, share: float) -> jax.Array | None:
        """i32[rows, kept]; None at a share of zero."""
        if share == 0:
            return None
        if self.kind == "random":
            return some(key, rows, patches, share=share)
        side = math.isqrt(patches)
        if side * side != patches or (self.kind == "grid" and side % 2):
            even = " of an even side" if self.kind == "grid" else ""
            raise ConfigError(f"augment.patch_dropout.kind={self.kind!r}: {patches} patches are no square grid{even}")
        return windows(key, rows, side) if self.kind == "grid" else block(key, rows, side, share=share)


def some(key: jax.Array, rows: int, n: int, *, share: float) -> jax.Array:
    """i32[rows, kept]: for each row ``max(1, ⌊n (1 - share)⌋)`` of n places."""
    _, chosen = jax.lax.top_k(jax.random.uniform(key, (rows, n)), max(1, int(n * (1 - share))))
    return chosen


def windows(key: jax.Array, rows: int, side: int) -> jax.Array:
    """i32[rows, side²/4]: one place of each 2 x 2 window."""
    corner = 2 * jnp.arange(side // 2)
    drawn = jax.random.randint(key, (2, rows, side // 2, side // 2), 0, 2)
    return ((corner[:, None] + drawn[0]) * side + corner + drawn[1]).reshape(rows, -1)


def block(key: jax.Array, rows: int, side: int, *, share: float) -> jax.Array:
    """i32[rows, kept²]: a square of ``max(1, ⌊side √(1 - share)⌋)`` places a side."""
    keep = max(1, math.floor(side * math.sqrt(1 - share) + 1e-6))
    corner = jax.random.randint(key, (2, rows, 1, 1), 0, side - keep + 1)
    inner = jnp.arange(keep)
    return ((corner[0] + inner[:, None]) * side + corner[1] + inner).reshape(rows, -1)
