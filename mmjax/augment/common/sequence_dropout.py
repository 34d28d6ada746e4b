"""What drops tokens before the towers see them: the clean rows' own computation, made cheaper."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.augment.common import schedules
from mmjax.augment.common.base import TowerInfo
from mmjax.augment.common.schedules import Schedule, Strength
from mmjax.core.config import ConfigError


class SequenceDropout:
    """Drops a ``share`` of the tokens in training, for the clean rows and for all that is made of them.

    Lengths are compiled in. A share that changes therefore moves in ``levels`` equal parts of its largest value, and
    the program holds a forward and backward pass for each of them; the traced step chooses which one runs.
    """

    def __init__(self, *, share: Strength, levels: int):
        schedules.check(share, path=f"augment.{self.name()}.share", high=0.99)
        if levels < 1:
            raise ConfigError(f"augment.{self.name()}.levels={levels}: must be at least 1")
        self.share = share
        moves = isinstance(share, Schedule) and not share.still
        largest = max(share.extremes) if isinstance(share, Schedule) else share
        self.shares = tuple(largest * i / levels for i in range(levels + 1)) if moves else (largest,)

    @classmethod
    def name(cls) -> str:
        """The module's file name, which is the augmentation's name in a config."""
        return cls.__module__.rpartition(".")[2]

    def level(self, step: jax.Array) -> jax.Array:
        """i32[]: which of ``shares`` is the nearest at a traced step."""
        return jnp.argmin(jnp.abs(jnp.asarray(self.shares) - schedules.at(self.share, step))).astype(jnp.int32)

    def texts(self, ids: jax.Array, key: jax.Array, *, share: float, towers: TowerInfo) -> jax.Array:
        """Token ids i32[M, L] -> i32[M, L']; ``share`` is one of ``shares``."""
        return ids

    def patches(self, key: jax.Array, *, rows: int, patches: int, share: float) -> jax.Array | None:
        """Which patches of each image enter the first block, i32[rows, kept]; None: all of them."""
        return None


def keep_patches(tokens: jax.Array, chosen: jax.Array | None, *, num_prefix_tokens: int) -> jax.Array:
    """The ``chosen`` patches, i32[N, kept], after the tokens in front of them: [N, T, D] -> [N, T', D]."""
    if chosen is None:
        return tokens
    front, patches = tokens[:, :num_prefix_tokens], tokens[:, num_prefix_tokens:]
    return jnp.concatenate([front, jnp.take_along_axis(patches, chosen[..., None], axis=1)], axis=1)
