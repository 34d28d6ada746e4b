"""TCL: ALBEF with contrast within each modality, and of wholes against pieces."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from mmjax.core.config import Ge
from mmjax.core.sphere import unit
from mmjax.core.types import Metrics
from mmjax.objectives import albef
from mmjax.objectives.common.base import State
from mmjax.objectives.common.local_terms import local_loss, pool_patches
from mmjax.objectives.common.momentum_queue import distilled_loss
from mmjax.objectives.common.tower_tokens import MomentumFeatures
from mmjax.objectives.fusion import Sources


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(albef.Objective):
    """Triple contrastive learning (Yang et al. 2022, arXiv:2202.10401): ``albef`` with three contrasts in place of one.

    ::

        loss = (L_cma + intra_weight · L_imc + local_weight · L_lmi) / (1 + intra_weight + local_weight) + L_itm + L_mlm
        L_imc = ½ mean_i [-Σ_k t_ik log softmax_k (scale · image_i · image^m_k)] + the same of texts
        L_lmi = ½ mean_i mean_l [log(e^p_il + Σ_(j ≠ i, k) e^(scale · image_i · patch^m_jk)) - p_il] + the same of words

    L_cma is ALBEF's L_itc, ``t = S / Σ S`` among rows of one side, and ``p_il = scale · image_i · patch^m_il``. Patches
    and words are the tokens of the moving average's towers, projected to unit length; patches are averaged in windows
    (``pool_patches``). Rows that share a source are no negatives.

    The paper adds up the terms; the released code takes the mean of the six, as here, so each has the weight of a
    third. The paper's local terms have negatives from the batch, as here. Its moving average sees a second random
    view of the picture, the code by a second transform; here it sees the same picture, so give pictures a second view
    with an augmentation of pixels if that matters.

    Args:
        intra_weight: Of contrast within a modality.
        local_weight: Of contrast with pieces.
    """

    intra_weight: Annotated[float, Ge(0)] = 1.0
    local_weight: Annotated[float, Ge(0)] = 1.0

    def contrast_with_momentum(
        self,
        image: jax.Array,
        text: jax.Array,
        sources: Sources,
        momentum: MomentumFeatures,
        *,
        scale: jax.Array,
        state: State,
    ) -> tuple[jax.Array, Metrics]:
        """The three contrasts."""
        across, metrics = super().contrast_with_momentum(image, text, sources, momentum, scale=scale, state=state)
        within = local = jnp.zeros((), jnp.float32)
        sides = list(zip((image, text), sources, self.columns(state, sources, momentum), strict=True))
        if self.intra_weight:
            losses = [
                distilled_loss(rows, None, columns, self.targets_of(source, of_columns), scale=scale, soft_weight=0.0)
                for rows, source, (columns, of_columns) in sides
            ]
            within = 0.5 * (losses[0][0] + losses[1][0])
        if self.local_weight:
            pieces = self._pieces(momentum)
            losses_of_pieces = []
            for (rows, source, _), (of_rows, valid) in zip(sides, pieces, strict=True):
                target, among = self.targets_of(source, source)
                is_other = among & ~(target > 0)
                losses_of_pieces.append(
                    local_loss(rows, of_rows, is_other, jnp.diagonal(target) > 0, scale=scale, valid=valid)
                )
            local = 0.5 * (losses_of_pieces[0] + losses_of_pieces[1])
        total = across + self.intra_weight * within + self.local_weight * local
        metrics |= {"across_loss": across, "intra_loss": within, "local_loss": local}
        return total / (1 + self.intra_weight + self.local_weight), metrics

    def _pieces(self, momentum: MomentumFeatures) -> list[tuple[jax.Array, jax.Array | None]]:
        """The moving average's unit vectors of patches and of words, and which of them there are."""
        model, tokens = momentum.tokens.model, momentum.tokens
        vision = model.visual.config
        patches = unit(model.visual.project(tokens.image[:, vision.class_token + vision.registers :]))
        of_text = unit(model.text.project(tokens.text[:, 1:]))
        return [(pool_patches(patches), None), (of_text, tokens.valid[:, 1:])]
