"""Exchanges between the two embeddings of a pair."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.augment.common import base, schedules
from mmjax.augment.common.base import Augmented, Features, Tap, View
from mmjax.augment.common.schedules import Strength
from mmjax.core.sphere import unit


class Augmentation(base.Base):
    """Swaps image and text, or blocks of their coordinates, in randomly chosen pairs.

    The pooled form of cross-modal CutMix (Wang et al. 2022, arXiv:2206.08919), which needs no gallery. With a mask
    ``m_i`` over coordinates (all of them, or each block by a fair coin) for the pairs that a Bernoulli(p) draw
    chooses, and zero for the others::

        image'_i = (1 - m_i) image_i + m_i text_i,   text'_i = (1 - m_i) text_i + m_i image_i

    of unit embeddings, scaled to length one again. The product of a pair is the same before and after the exchange,
    because both factors move, so a pair's answer is not given away (on noise the loss stays at chance); what changes
    are its negatives, among which are now comparisons within a modality. Labels are the pair's own. A model that
    closes the modality gap trivially can lower this loss: watch ``modality_gap``.

    Options: ``probability`` p, ``part`` (``whole`` or ``blocks``), ``blocks`` how many of them.
    """

    tap: Tap = "embedding"

    def __init__(
        self,
        *,
        weight: Strength = 0.1,
        probability: Strength = 0.3,
        part: Literal["whole", "blocks"] = "whole",
        blocks: int = 8,
    ):
        super().__init__(weight=weight)
        schedules.check(probability, path="augment.cross_swap.probability", high=1.0)
        schedules.check(blocks, path="augment.cross_swap.blocks", low=1.0)
        self.probability, self.part, self.blocks = probability, part, blocks

    def augment(self, clean: Features, *, key: jax.Array, step: jax.Array) -> Augmented:
        """One view of as many pairs as there are images."""
        pairs = clean.pairs()
        image, text = unit(pairs.image), unit(pairs.text)
        rows, width = image.shape
        chosen_key, block_key = jax.random.split(key)
        mask = jax.random.bernoulli(chosen_key, schedules.at(self.probability, step), (rows, 1))
        if self.part == "blocks":
            coins = jax.random.bernoulli(block_key, 0.5, (rows, self.blocks))
            mask = mask & coins[:, jnp.arange(width) * self.blocks // width]
        view = View(
            image=jnp.where(mask, text, image),
            text=jnp.where(mask, image, text),
            image_source=pairs.image_source,
            text_source=pairs.text_source,
        )
        return Augmented(views=[view], metrics={"swapped_share": jnp.mean(mask, dtype=jnp.float32)})
