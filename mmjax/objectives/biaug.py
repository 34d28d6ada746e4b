"""BiAug: edited pictures with edited captions, as further pairs or as hard negatives of both sides."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax

from mmjax.core.types import Metrics, Provenance
from mmjax.objectives import contrastive
from mmjax.objectives.common.row_softmax import row_softmax
from mmjax.objectives.common.targets import Labels, is_negative, make_targets, own_negatives
from mmjax.objectives.common.tiles import num_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(contrastive.Objective):
    """CLIP's loss for pictures and captions that were edited together (BiAug, Wu et al. 2023, arXiv:2310.01330).

    An edit makes of a pair (I, T) another pair (I⁻, T⁻) that differs in one attribute. With ``mode="pairs"`` both are
    pairs of the batch, and each other's negatives::

        loss = contrastive

    The data then holds them as two examples, which a source with ``group=2`` keeps in one batch. With
    ``mode="bimodal"`` the edits are hard negatives of their own example alone: rows of zero weight, on either side.
    With logits ``L`` without bias, targets ``S``, and ``H`` the hard negatives of a row's example::

        loss = ½ mean_i [log Σ_(j ∈ captions ∪ H_i) e^L_ij - Σ_j S_ij L_ij / Σ_j S_ij]
             + ½ mean_j [log Σ_(i ∈ images ∪ H_j) e^L_ij - Σ_i S_ij L_ij / Σ_i S_ij]

    ``data.negatives_per_image`` supplies such rows of text; image rows of zero weight come from a batch transform of
    your own. Without edits both modes are CLIP's loss. There is no released code, and the form of the loss in the paper
    is not verified; the two modes are our reading of its bimodal negatives.

    For the other options see ``Base``.

    Args:
        mode: What edits are.
    """

    mode: Literal["pairs", "bimodal"] = "pairs"

    def __call__(
        self,
        image: jax.Array,
        text: jax.Array,
        *,
        image_source: Provenance,
        text_source: Provenance,
        scale: jax.Array,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """The loss f32[] and in-batch accuracies; for the arguments see ``Base``."""
        if self.mode == "pairs":
            sources = {"image_source": image_source, "text_source": text_source}
            return super().__call__(image, text, **sources, scale=scale, bias=bias)
        images, texts = self.make_labels(image_source), self.make_labels(text_source)
        n, m = num_rows(image), num_rows(text)
        to_text = row_softmax(self.make_sweep(n, m), _with_own_negatives, (scale * image, images), (text, texts))
        to_image = row_softmax(self.make_sweep(m, n), _with_own_negatives, (scale * text, texts), (image, images))
        metrics = {"image_to_text_accuracy": to_text.accuracy, "text_to_image_accuracy": to_image.accuracy}
        return 0.5 * (to_text.loss + to_image.loss), metrics


def _with_own_negatives(rows: Labels, columns: Labels) -> tuple[jax.Array, jax.Array]:
    """All columns but the negatives of other rows' examples."""
    target, pairs = make_targets(rows, columns)
    return target, pairs & (~is_negative(columns)[None, :] | own_negatives(rows, columns))
