"""Fewer words of each text in training: the text masking of FLIP and CLIPA."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.augment.common.base import TokenMask, TowerInfo
from mmjax.augment.common.sequence_dropout import DropRate, Levels, SequenceDropout

Kind = Literal["random", "block", "truncate"]


class Augmentation(SequenceDropout):
    """Drops a fraction p of the words before they are embedded (CLIPA: Li et al. 2023, arXiv:2305.07017; FLIP §3).

    Texts of length L become texts of length ``L' = 2 + ⌈(L - 2)(1 - p)⌉``. Of a text's n words (all tokens between
    the first position and the end token, which both stay) these remain, in their order::

        relative_to="length":  min(n, L' - 2): only texts that are too long lose any, as in the papers
        relative_to="words":   ⌈n (1 - p)⌉

    They are drawn again for each text and step: ``random`` words, a ``block`` of adjacent ones, or (``truncate``) the
    first. The remaining words move together and take the first positions. CLIPA's choice by parts of speech needs a
    tagger and is not implemented.

    Args:
        drop_rate: p.
        relative_to: what p is a fraction of.
        kind: which words stay.
        levels: the steps that a changing drop rate is rounded to.
    """

    def __init__(
        self,
        *,
        drop_rate: DropRate = 0.25,
        relative_to: Literal["words", "length"] = "length",
        kind: Kind = "random",
        levels: Levels = 4,
    ):
        super().__init__(drop_rate=drop_rate, levels=levels)
        self.relative_to, self.kind = relative_to, kind

    def drop_tokens(self, ids: jax.Array, key: jax.Array, *, drop_rate: float, towers: TowerInfo) -> jax.Array:
        """i32[M, L] -> i32[M, L']."""
        rows, length = ids.shape
        if drop_rate == 0 or length <= 2:
            return ids
        token_mask = TokenMask.from_ids(ids, eos_id=towers.eos_id)
        count = jnp.sum(token_mask.content, axis=1, keepdims=True)
        most = count_kept(length - 2, drop_rate)
        if self.relative_to == "words":
            # A table, not a formula: every device and precision then rounds a count in the same way.
            keep = jnp.asarray([count_kept(n, drop_rate) for n in range(length - 1)])[count]
        else:
            keep = jnp.minimum(count, most)
        place = jnp.arange(length) - 1  # of a word among the words
        if self.kind == "random":
            order = jnp.where(token_mask.content, jax.random.uniform(key, ids.shape), 2.0)
            chosen = jnp.argsort(jnp.argsort(order, axis=1), axis=1) < keep
        else:
            draw = jax.random.uniform(key, (rows, 1))
            first = jnp.floor(draw * (count - keep + 1).astype(jnp.float32)).astype(jnp.int32)
            first = jnp.minimum(first, count - keep) if self.kind == "block" else jnp.zeros_like(count)
            chosen = (place >= first) & (place < first + keep)
        stays = token_mask.valid & (chosen | ~token_mask.content)
        # The remaining tokens move to the front in their order; all sort keys differ.
        order = jnp.argsort(jnp.where(stays, 0, length) + jnp.arange(length), axis=1)[:, : most + 2]
        kept = jnp.take_along_axis(ids, order, axis=1)
        return jnp.where(jnp.take_along_axis(stays, order, axis=1), kept, towers.pad_id)


def count_kept(n: int, drop_rate: float) -> int:
    """``⌈n (1 - drop_rate)⌉``, exact despite the rounding of ``1 - drop_rate``."""
    return math.ceil(n * (1 - drop_rate) - 1e-6)
