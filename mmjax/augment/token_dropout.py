"""Fewer words of each text in training: FLIP's and CLIPA's text masking."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.augment.common.base import TokenMask, TowerInfo
from mmjax.augment.common.schedules import Strength
from mmjax.augment.common.sequence_dropout import SequenceDropout

Kind = Literal["random", "block", "truncate"]


class Augmentation(SequenceDropout):
    """Drops a share p of the words before they are embedded (CLIPA: Li et al. 2023, arXiv:2305.07017; FLIP §3).

    Texts of length L become texts of ``L' = 2 + ⌈(L - 2)(1 - p)⌉``. Of a text's n words stay, in their order::

        of="length":  min(n, L' - 2): only texts that are too long lose any, as in the papers
        of="words":   ⌈n (1 - p)⌉

    the words being all between the first position and the end token, which both stay. They are, anew for each text
    and step, ``random`` ones, a ``block`` of neighbours, or (``truncate``) the first. What stays moves together and
    takes the positions from the first on, as if it had been written so. CLIPA's choice by parts of speech needs a
    tagger and is not here.

    Options: ``share`` p, ``of``, ``kind``, ``levels`` in which a share that changes is rounded, beside 0.
    """

    def __init__(
        self,
        *,
        share: Strength = 0.25,
        of: Literal["words", "length"] = "length",
        kind: Kind = "random",
        levels: int = 4,
    ):
        super().__init__(share=share, levels=levels)
        self.of, self.kind = of, kind

    def texts(self, ids: jax.Array, key: jax.Array, *, share: float, towers: TowerInfo) -> jax.Array:
        """i32[M, L] -> i32[M, L']."""
        rows, length = ids.shape
        if share == 0 or length <= 2:
            return ids
        token_mask = TokenMask.from_ids(ids, eos_id=towers.eos_id)
        count = jnp.sum(token_mask.content, axis=1, keepdims=True)
        most = kept_words(length - 2, share)
        if self.of == "words":
            # Looked up, not computed: every device and precision then rounds a count in the same way.
            keep = jnp.asarray([kept_words(n, share) for n in range(length - 1)])[count]
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
        # What stays moves to the front in its order; sorting is by distinct numbers.
        order = jnp.argsort(jnp.where(stays, 0, length) + jnp.arange(length), axis=1)[:, : most + 2]
        kept = jnp.take_along_axis(ids, order, axis=1)
        return jnp.where(jnp.take_along_axis(stays, order, axis=1), kept, towers.pad_id)


def kept_words(n: int, share: float) -> int:
    """``⌈n (1 - share)⌉``, whatever ``1 - share`` is rounded to."""
    return math.ceil(n * (1 - share) - 1e-6)
