"""The base class of ``patch_dropout`` and ``token_dropout``: the towers see fewer tokens in training."""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp

from mmjax.augment.common import schedules
from mmjax.augment.common.base import TowerInfo
from mmjax.augment.common.schedules import Schedule
from mmjax.core.config import Between, Ge

DropRate = Annotated[float | Schedule, Between(0, 0.99)]
Levels = Annotated[int, Ge(1)]


class SequenceDropout:
    """Drops tokens in training, for the clean rows and for all views made of them.

    Sequence lengths are compiled in. A drop rate that changes is therefore rounded to ``levels`` equal steps between
    0 and its largest value. The program holds a forward and backward pass for each of them, and the traced step
    chooses which one runs.

    Args:
        drop_rate: the fraction of tokens to drop.
        levels: the steps that a changing drop rate is rounded to.
    """

    def __init__(self, *, drop_rate: DropRate, levels: Levels):
        self.drop_rate = drop_rate
        changes = isinstance(drop_rate, Schedule) and not drop_rate.is_constant
        largest = schedules.largest_value(drop_rate)
        self.drop_rates = tuple(largest * i / levels for i in range(levels + 1)) if changes else (largest,)

    def level(self, step: jax.Array) -> jax.Array:
        """i32[]: the index in ``drop_rates`` of the one nearest to the drop rate at a traced step."""
        drop_rate = schedules.value_at(self.drop_rate, step)
        return jnp.argmin(jnp.abs(jnp.asarray(self.drop_rates) - drop_rate)).astype(jnp.int32)

    def drop_tokens(self, ids: jax.Array, key: jax.Array, *, drop_rate: float, towers: TowerInfo) -> jax.Array:
        """Shortens texts: token ids i32[M, L] -> i32[M, L'], with one of ``drop_rates``."""
        return ids

    def choose_patches(self, key: jax.Array, *, rows: int, patches: int, drop_rate: float) -> jax.Array | None:
        """The patches of each image that enter the first block, i32[rows, kept], or None for all of them."""
        return None


def keep_patches(tokens: jax.Array, chosen: jax.Array | None, *, num_prefix_tokens: int) -> jax.Array:
    """The prefix tokens and the patches ``chosen`` (i32[N, kept], or None for all): [N, T, D] -> [N, T', D]."""
    if chosen is None:
        return tokens
    prefix, patches = tokens[:, :num_prefix_tokens], tokens[:, num_prefix_tokens:]
    return jnp.concatenate([prefix, jnp.take_along_axis(patches, chosen[..., None], axis=1)], axis=1)
