"""Linear mixes of pairs of examples at a tap: manifold mixup."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from mmjax.augment.common import base, schedules
from mmjax.augment.common.base import Augmented, Features, Tap, TokenMask, TowerInfo, View
from mmjax.augment.common.mixing import Draw, Targets, beta_share, flipped, lerp, mixed_source, share_metrics
from mmjax.augment.common.schedules import Strength
from mmjax.core.types import Provenance


class Augmentation(base.Base):
    """Manifold mixup (Verma et al. 2019, arXiv:1806.05236; mixup: Zhang et al. 2018, arXiv:1710.09412).

    With a partner π(i) for each pair and ``λ ~ Beta(α, α)``::

        h'_i = λ h_i + (1 - λ) h_π(i),   sources of h'_i:  λ of pair i, 1 - λ of pair π(i)

    on images, texts, or both with the same λ. With one side mixed, the target of row i is λ on its own pair and
    1 - λ on its partner's, the papers' soft label; with both, λ² + (1 - λ)² and 2λ(1 - λ). π reverses the batch.
    The papers classify, mix one side and choose the layer anew at each step; here it is the tap. At ``input`` h are
    pixels and token embeddings, at ``tokens@K`` what enters block K, and the rest of the towers runs again for the
    mixes; texts are then mixed place by place, and the longer of the two says where the mix ends.

    Options: ``alpha`` α (0: no mixing), ``draw`` one λ for the batch or one for each row, ``sides``, ``tap``,
    ``targets``.
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
        schedules.check(alpha, path="augment.mixup.alpha")
        towers.check(tap, kinds=("input", "tokens", "pooled", "embedding"), path="augment.mixup.tap")
        self.alpha, self.draw, self.sides, self.tap, self.targets = alpha, draw, sides, tap, targets

    def augment(self, clean: Features, *, key: jax.Array, step: jax.Array) -> Augmented:
        """One view of as many pairs as there are images."""
        pairs = clean.pairs()
        rows = pairs.examples
        share = beta_share(key, schedules.at(self.alpha, step), rows=rows, draw=self.draw)
        images, texts = self.sides != "text", self.sides != "image"

        def mixed(side: Any) -> Any:
            return jax.tree.map(lambda x: lerp(x, flipped(x), share), side)

        view = View(
            image=mixed(pairs.image) if images else None,
            text=mixed(pairs.text) if texts else None,
            image_source=self._source(pairs.image_source, share) if images else None,
            text_source=self._source(pairs.text_source, share) if texts else None,
            ids=longer(pairs.token_mask) if texts and pairs.token_mask is not None else None,
        )
        return Augmented(views=[view], metrics=share_metrics(share))

    def _source(self, source: Provenance, share: jax.Array) -> Provenance:
        partner = jax.tree.map(flipped, source)
        return mixed_source([(source, share), (partner, 1 - share)], self.targets)


def longer(token_mask: TokenMask) -> jax.Array:
    """i32[M, L]: the ids of the longer text of each row and its partner."""
    length = jnp.sum(token_mask.valid, axis=1, keepdims=True)
    return jnp.where(flipped(length) > length, flipped(token_mask.ids), token_mask.ids)
