"""TSVLC: each image's captions against its own false captions, and captions of one image against each other."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.config import Ge
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives import contrastive
from mmjax.objectives.common.row_softmax import row_softmax, weighted_mean
from mmjax.objectives.common.targets import (
    Labels,
    make_targets,
    own_negatives,
    without_negatives,
)
from mmjax.objectives.common.tiles import num_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(contrastive.Objective):
    """CLIP's loss with terms for false captions and for analogous ones (SVLC, Doveh et al. 2023, arXiv:2211.11733).

    With logits ``L`` without bias, targets ``S``, ``C_i`` the captions of image i, ``H_i`` its hard negatives (text
    rows of zero weight), and ``T_jk = scale · text_j · text_k``::

        loss = negclip + negative_weight · L_neg + positive_weight · L_pos
        L_neg = mean_(i: H_i not empty) [log Σ_(j ∈ C_i ∪ H_i) e^L_ij - Σ_j S_ij L_ij / Σ_j S_ij]
        L_pos = ½ mean_i [log Σ_(j ∈ captions) e^L_ij - Σ_j S_ij L_ij / Σ_j S_ij]
              + ½ mean_(j ∈ captions) [log Σ_(k ∈ captions, k ≠ j) e^T_jk - mean_(k ∈ A_j) T_jk]

    ``A_j`` are the analogies of caption j: the other captions of its image. A caption without any is its own analogy,
    as in the paper, and is then in its normalizer. So ``data.captions_per_image=2`` with analogies among the captions
    is the paper's setting; here it makes no difference which of the two is the caption and which the analogy.

    On several devices the released code cuts the negatives off before they are compared, so that its contrastive term
    has none. Captions without negatives have rows of zeros there, in the normalizer; here they are padding.

    For the other options see ``Base``.

    Args:
        negative_weight: α of the paper.
        positive_weight: β of the paper.
        contrast_negatives: Whether negatives are columns of the contrastive term; without, that is CLIP's loss.
    """

    needs_negatives: ClassVar[bool] = True

    negative_weight: Annotated[float, Ge(0)] = 1.0
    positive_weight: Annotated[float, Ge(0)] = 1.0
    contrast_negatives: bool = True

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
        """The loss f32[], its terms and accuracies; for the arguments see ``Base``."""
        sources = {
            "image_source": image_source,
            "text_source": text_source if self.contrast_negatives else without_negatives(text_source),
        }
        contrast, metrics = super().__call__(image, text, **sources, scale=scale, bias=bias)
        n, m = num_rows(image), num_rows(text)
        images, texts = self.make_labels(image_source), self.make_labels(text_source)
        captions = self.make_labels(without_negatives(text_source))

        own = row_softmax(self.make_sweep(n, m), _own_texts, (scale * image, images), (text, texts))
        negative = weighted_mean(own.normalizer - own.positive, own.has_positive & own.has_negative)

        to_captions = row_softmax(self.make_sweep(n, m), make_targets, (scale * image, images), (text, captions))
        numbers = jnp.arange(m, dtype=jnp.int32)
        others = row_softmax(
            self.make_sweep(m, m), _other_captions, (scale * text, (captions, numbers)), (text, (captions, numbers))
        )
        itself = scale * jnp.sum(text * text, axis=1)
        alone = jax.nn.softplus(others.normalizer - itself)
        each = jnp.where(others.has_positive, others.normalizer - others.positive, alone)
        positive = 0.5 * (to_captions.loss + weighted_mean(each, captions.valid))

        metrics |= {
            "contrastive_loss": contrast,
            "negative_loss": negative,
            "positive_loss": positive,
            "own_negative_accuracy": weighted_mean(
                (own.best > own.rest).astype(jnp.float32), own.has_positive & own.has_negative
            ),
        }
        return contrast + self.negative_weight * negative + self.positive_weight * positive, metrics


def _own_texts(image: Labels, text: Labels) -> tuple[jax.Array, jax.Array]:
    """An image's captions, in a normalizer of these and of its own negatives."""
    target, _ = make_targets(image, text)
    return target, (target > 0) | own_negatives(image, text)


def _other_captions(rows: tuple[Labels, Any], columns: tuple[Labels, Any]) -> tuple[jax.Array, jax.Array]:
    """The other captions of a caption's image, in a normalizer of all captions but itself."""
    (row, row_numbers), (column, column_numbers) = rows, columns
    target, pairs = make_targets(row, column)
    others = pairs & (row_numbers[:, None] != column_numbers[None, :])
    return jnp.where(others, target, 0.0), others
