"""Linear mixes of pairs of examples at a tap: manifold mixup."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from mmjax.augment.common import base, schedules
from mmjax.augment.common.base import Augmented, Features, Tap, TokenMask, TowerInfo, View
from mmjax.augment.common.mixing import Draw, Targets, draw_mix_ratio, flipped, lerp, mix_ratio_metrics, mixed_source
from mmjax.augment.common.schedules import Strength
from mmjax.core.types import Provenance


class Augmentation(base.Base):
    """Mixes pairs of examples linearly: manifold mixup (Verma et al. 2019, arXiv:1806.05236).

    With a partner π(i) for each pair (the batch reversed) and ``λ ~ Beta(α, α)``::

        h'_i = λ h_i + (1 - λ) h_π(i),   sources of h'_i:  λ of pair i, 1 - λ of pair π(i)

    on images, texts, or both with the same λ. With one side mixed, the target of row i is λ on its own pair and
    1 - λ on its partner's: the soft label of the papers (mixup: Zhang et al. 2018, arXiv:1710.09412). With both mixed
    it is λ² + (1 - λ)² and 2λ(1 - λ). The papers classify, mix one side, and choose the layer again at each step;
    here the layer is the tap. At ``input`` h are pixels and token embeddings, at ``tokens@K`` what enters block K,
    and the rest of the towers runs again for the mixes. Texts are then mixed position by position, and the end token
    of the longer one is pooled; sequences of frames frame by frame, and those that either has are seen.

    Args:
        weight: the factor on this augmentation's loss.
        alpha: α; 0 mixes nothing.
        draw: one λ for the batch or one for each row.
        sides: what is mixed.
        tap: where.
        targets: the labels of mixed rows.
    """

    def __init__(
        self,
        *,
        towers: TowerInfo,
        weight: Strength = 0.5,
        alpha: Strength = 1.0,
        draw: Draw = "batch",
        sides: Literal["both", "image", "text"] = "image",
        tap: Tap = "pooled",
        targets: Targets = "provenance",
    ):
        super().__init__(weight=weight)
        towers.check_tap(tap, kinds=("input", "tokens", "pooled", "embedding"), path="augment.mixup.tap")
        self.alpha, self.draw, self.sides, self.tap, self.targets = alpha, draw, sides, tap, targets

    def augment(self, clean: Features, *, key: jax.Array, step: jax.Array) -> Augmented:
        """One view of as many pairs as there are images."""
        pairs = clean.pairs()
        rows = pairs.examples
        mix_ratio = draw_mix_ratio(key, schedules.value_at(self.alpha, step), rows=rows, draw=self.draw)
        images, texts = self.sides != "text", self.sides != "image"

        def mix(side: Any) -> Any:
            return jax.tree.map(lambda x: lerp(x, flipped(x), mix_ratio), side)

        view = View(
            image=mix(pairs.image) if images else None,
            text=mix(pairs.text) if texts else None,
            image_source=self._mix_source(pairs.image_source, mix_ratio) if images else None,
            text_source=self._mix_source(pairs.text_source, mix_ratio) if texts else None,
            ids=longer_ids(pairs.token_mask) if texts and pairs.token_mask is not None else None,
            image_mask=mixed_mask(pairs.image_mask, mix_ratio) if images and pairs.image_mask is not None else None,
        )
        return Augmented(views=[view], metrics=mix_ratio_metrics(mix_ratio))

    def _mix_source(self, source: Provenance, mix_ratio: jax.Array) -> Provenance:
        partner = jax.tree.map(flipped, source)
        return mixed_source([(source, mix_ratio), (partner, 1 - mix_ratio)], self.targets)


def mixed_mask(mask: jax.Array, mix_ratio: jax.Array) -> jax.Array:
    """bool[N, T]: the frames that a row, or the partner that is mixed into it, has."""
    return mask | (flipped(mask) & (mix_ratio < 1))


def longer_ids(token_mask: TokenMask) -> jax.Array:
    """i32[M, L]: the ids of the longer text of each row and its partner."""
    length = jnp.sum(token_mask.valid, axis=1, keepdims=True)
    return jnp.where(flipped(length) > length, flipped(token_mask.ids), token_mask.ids)
