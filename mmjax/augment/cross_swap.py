"""Image and text embeddings exchanged in randomly chosen pairs."""

from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from mmjax.augment.common import base, schedules
from mmjax.augment.common.base import Augmented, Features, Tap, View
from mmjax.augment.common.schedules import Fraction, Strength
from mmjax.core.config import Ge
from mmjax.core.sphere import unit


class Augmentation(base.Base):
    """Swaps image and text embeddings, or blocks of their coordinates, in randomly chosen pairs.

    The pooled form of cross-modal CutMix (Wang et al. 2022, arXiv:2206.08919), which needs no gallery. With a mask
    ``m_i`` over the coordinates of unit embeddings (all of them, or each block with probability ½) for the pairs that
    a Bernoulli(p) draw chooses, and zero for the others::

        image'_i = (1 - m_i) image_i + m_i text_i,   text'_i = (1 - m_i) text_i + m_i image_i

    scaled to length one again. A pair's own similarity is the same before and after the exchange, because both
    factors change, so the swap does not give its answer away (on noise the loss stays at chance). Its negatives
    change: some now compare within a modality. Labels are the pair's own. A model can also lower this loss by closing
    the modality gap: watch ``modality_gap``.

    Args:
        weight: the factor on this augmentation's loss.
        probability: p.
        part: swap whole embeddings, or blocks.
        blocks: how many blocks an embedding has.
    """

    tap: Tap = "embedding"

    def __init__(
        self,
        *,
        weight: Strength = 0.1,
        probability: Fraction = 0.3,
        part: Literal["whole", "blocks"] = "whole",
        blocks: Annotated[int, Ge(1)] = 8,
    ):
        super().__init__(weight=weight)
        self.probability, self.part, self.blocks = probability, part, blocks

    def augment(self, clean: Features, *, key: jax.Array, step: jax.Array) -> Augmented:
        """One view of as many pairs as there are images."""
        pairs = clean.pairs()
        image, text = unit(pairs.image), unit(pairs.text)
        rows, width = image.shape
        chosen_key, block_key = jax.random.split(key)
        mask = jax.random.bernoulli(chosen_key, schedules.value_at(self.probability, step), (rows, 1))
        if self.part == "blocks":
            coins = jax.random.bernoulli(block_key, 0.5, (rows, self.blocks))
            mask = mask & coins[:, jnp.arange(width) * self.blocks // width]
        view = View(
            image=jnp.where(mask, text, image),
            text=jnp.where(mask, image, text),
            image_source=pairs.image_source,
            text_source=pairs.text_source,
        )
        return Augmented(views=[view], metrics={"swapped_fraction": jnp.mean(mask, dtype=jnp.float32)})
