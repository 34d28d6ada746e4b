"""CE-CLIP: hard negatives ranked below their captions by adaptive thresholds, and contrasted among texts."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from mmjax.core.config import Ge
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives import contrastive
from mmjax.objectives.common.base import State
from mmjax.objectives.common.pair_sums import Side, sum_pairs
from mmjax.objectives.common.row_softmax import row_softmax, weighted_mean
from mmjax.objectives.common.targets import Labels, is_negative, make_targets, own_negatives, similarity
from mmjax.objectives.common.tiles import num_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(contrastive.Objective):
    """NegCLIP's loss, a ranking of an image's texts, and a contrast of texts (Zhang et al. 2024, arXiv:2306.08832).

    With logits ``L`` without bias, ``p_i`` the mean logit of image i and its captions, ``q_j`` that of caption j and
    its images, ``H_i`` the hard negatives (text rows of zero weight) of image i, and ``H`` all of them::

        loss = negclip + rank_weight · cmr + intra_weight · imc
        cmr  = mean_(i, j ∈ H_i) max(0, Th + L_ij - p_i)
        imc  = mean_(j ∈ captions) -log [e^q_j / (e^q_j + Σ_(h ∈ H) e^(scale · text_j · text_h))]
        Th  <- clip(mean_i p_i - mean_(i, j ∈ H_i) L_ij, 0, max_threshold), from 0

    The threshold is part of the training state: each step uses that of the step before it. It is in units of logits,
    so that 10 at a scale of 100 is a cosine of 0.1. A batch without negatives leaves it as it is.

    The released code has three forms of imc. That of its last version leaves out the positive and so pulls every
    caption towards the first negative of sample 0, and an earlier one has the label on a negative; only commit 7f4433a
    has the equation above, with the caption's own image as label. There the threshold starts from 0 again in every
    epoch, and missing negatives count in the mean of cmr and in both normalizers; here they are padding.

    For the other options see ``Base``.

    Args:
        rank_weight: α of the paper.
        intra_weight: β of the paper.
        threshold: ``adaptive``, or ``fixed`` at ``max_threshold``.
        max_threshold: u of the paper.
    """

    rank_weight: Annotated[float, Ge(0)] = 0.2
    intra_weight: Annotated[float, Ge(0)] = 0.3
    threshold: Literal["adaptive", "fixed"] = "adaptive"
    max_threshold: Annotated[float, Ge(0)] = 10.0

    def init_state(self) -> State:
        """A threshold of 0, unless it is fixed."""
        return {"threshold": jnp.zeros((), jnp.float32)} if self.threshold == "adaptive" else {}

    def next_state(self, state: State, metrics: Metrics) -> State:
        """The threshold of the step's logits."""
        return {name: metrics[name] for name in state}

    def __call__(
        self,
        image: jax.Array,
        text: jax.Array,
        *,
        image_source: Provenance,
        text_source: Provenance,
        scale: jax.Array,
        bias: jax.Array | None = None,
        state: State | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """The loss f32[], its terms and accuracies, and the next threshold; for the arguments see ``Base``."""
        sources = {"image_source": image_source, "text_source": text_source}
        contrast, metrics = super().__call__(image, text, **sources, scale=scale, bias=bias)
        n, m = num_rows(image), num_rows(text)
        images, texts = self.make_labels(image_source), self.make_labels(text_source)
        threshold = (state or self.init_state()).get("threshold", jnp.float32(self.max_threshold))

        sweep, scaled = self.make_sweep(n, m), scale * image
        by_image, by_caption = sum_pairs(sweep, _positives, None, (scaled, images), (text, texts))
        rows = (scaled, _mean(by_image)), (images, by_image[1] > 0)
        (ranking, negative, count), _ = sum_pairs(sweep, _ranking, threshold, rows, (text, texts))
        rank = jnp.sum(ranking) / jnp.maximum(jnp.sum(count), 1.0)

        hard = row_softmax(self.make_sweep(m, m), _to_negatives, (scale * text, texts), (text, texts))
        intra = weighted_mean(jax.nn.softplus(hard.normalizer - _mean(by_caption)), by_caption[1] > 0)

        gap = weighted_mean(_mean(by_image), by_image[1] > 0) - jnp.sum(negative) / jnp.maximum(jnp.sum(count), 1.0)
        adapted = jnp.where(jnp.sum(count) > 0, jnp.clip(gap, 0.0, self.max_threshold), threshold)
        metrics |= {
            "contrastive_loss": contrast,
            "rank_loss": rank,
            "intra_loss": intra,
            "threshold": jax.lax.stop_gradient(adapted) if self.threshold == "adaptive" else threshold,
        }
        return contrast + self.rank_weight * rank + self.intra_weight * intra, metrics


def _mean(sums: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Of sums of logits and of targets; 0 without a target."""
    total, mass = sums
    return jnp.where(mass > 0, total / jnp.where(mass > 0, mass, 1.0), 0.0)


def _positives(_shared: None, image: Side, text: Side) -> tuple[Any, Any]:
    """Σ S L and Σ S of images and of texts."""
    target, _ = make_targets(image[1], text[1])
    weighted = target * similarity(image[0], text[0])
    return tuple((jnp.sum(weighted, axis), jnp.sum(target, axis)) for axis in (1, 0))  # type: ignore[return-value]


def _ranking(threshold: Any, image: Side, text: Side) -> tuple[Any, tuple[()]]:
    """Of each image's own negatives: the sums of the hinges and of the logits, and their number."""
    (rows, positive), (labels, has_positive) = image
    own = own_negatives(labels, text[1]) & has_positive[:, None]
    logits = similarity(rows, text[0])
    hinge = jnp.maximum(threshold + logits - positive[:, None], 0.0)
    return tuple(jnp.sum(jnp.where(own, x, 0.0), axis=1) for x in (hinge, logits, jnp.ones_like(logits))), ()


def _to_negatives(caption: Labels, text: Labels) -> tuple[jax.Array, jax.Array]:
    """No targets: the normalizer of every caption has the hard negatives of all."""
    among = (caption.valid & ~is_negative(caption))[:, None] & is_negative(text)[None, :]
    return jnp.zeros(among.shape, jnp.float32), among
