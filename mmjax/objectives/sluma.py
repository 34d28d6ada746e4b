"""SLUMA, reconstructed: CLIP's loss, smoothed distances of pairs, and pseudo-labels for images without a caption."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.config import Between, Ge
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives import contrastive
from mmjax.objectives.common.base import State
from mmjax.objectives.common.pair_sums import Side, sum_pairs
from mmjax.objectives.common.row_softmax import row_maxima, safe_log, weighted_mean
from mmjax.objectives.common.targets import Labels, is_negative, make_targets, similarity, without_negatives
from mmjax.objectives.common.tiles import num_rows

_FLOOR = 1e-6  # added to squared distances, whose root has no gradient at 0
_TIE = 1e-4  # logits this near to the largest are equal to it: two passes round differently


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(contrastive.Objective):
    """The two losses of SLUMA (ACM MM 2024) beside CLIP's, as they can be read from a summary without its formulas.

    With Euclidean distances ``d`` of embeddings, targets ``S``, ``d_i`` the mean distance of row i to its targets,
    ``q`` the softmax of logits over all captions, and U the images of zero weight, which have no caption::

        loss = contrastive + smoothing_weight · smooth + self_weight · pseudo
        smooth = mean_i [Σ_j S_ij d_ij² / Σ_j S_ij + mean_(k ∈ N_i) max(0, σ(d_ik - d_i) - d_ik)²]
        pseudo = mean_(i ∈ U) [max_j q_ij >= τ] · -log max_j q_ij
        τ <- decay · τ + (1 - decay) · mean_(i ∈ U) max_j q_ij, from 0

    ``smooth`` is the mean of both directions, over the rows that have a target; N_i are the columns that are no target,
    hard negatives among them. ``pseudo`` has the form of FreeMatch (Wang et al. 2023, arXiv:2205.07246). τ is part of
    the training state, and each step uses that of the step before it. Images of zero weight come from
    ``gate.left_out=unlabeled``: they take no part in the other terms. Weights and decay are our own.

    For the other options see ``Base``.

    Args:
        smoothing_weight: of the smoothed distances.
        self_weight: of the pseudo-labels.
        decay: of the threshold τ.
    """

    uses_unlabeled: ClassVar[bool] = True
    smoothing_weight: Annotated[float, Ge(0)] = 0.1
    self_weight: Annotated[float, Ge(0)] = 1.0
    decay: Annotated[float, Between(0, 1)] = 0.99

    def init_state(self) -> State:
        """A threshold of 0."""
        return {"confidence": jnp.zeros((), jnp.float32)}

    def next_state(self, state: State, metrics: Metrics) -> State:
        """The moving average of the confidence; a batch without unlabeled images leaves it as it is."""
        old = state["confidence"]
        new = self.decay * old + (1 - self.decay) * metrics["confidence"]
        return {"confidence": jnp.where(metrics["unlabeled"] > 0, new, old)}

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
        """The loss f32[], its terms, accuracies and the confidence; for the arguments see ``Base``."""
        labeled = without_negatives(image_source)
        sources = {"image_source": labeled, "text_source": text_source}
        contrast, metrics = super().__call__(image, text, **sources, scale=scale, bias=bias)
        images, texts = self.make_labels(labeled), self.make_labels(text_source)
        smooth = self._smooth((image, images), (text, texts))
        threshold = (state or self.init_state())["confidence"]
        unlabeled = is_negative(self.make_labels(image_source))
        confidence, pseudo = self._label((scale * image, unlabeled), (text, texts))
        chosen = jnp.where(jax.lax.stop_gradient(confidence) >= threshold, pseudo, 0.0)
        self_loss = weighted_mean(chosen, unlabeled)
        metrics |= {
            "contrastive_loss": contrast,
            "smoothing_loss": smooth,
            "self_loss": self_loss,
            "confidence": weighted_mean(jax.lax.stop_gradient(confidence), unlabeled),
            "confidence_threshold": threshold,
            "unlabeled": jnp.mean(unlabeled, dtype=jnp.float32),
        }
        return contrast + self.smoothing_weight * smooth + self.self_weight * self_loss, metrics

    def _smooth(self, image: Side, text: Side) -> jax.Array:
        sweep = self.make_sweep(num_rows(image[0]), num_rows(text[0]))
        own = sum_pairs(sweep, _positives, None, image, text)
        means = [(_divide(distance, mass), _divide(squared, mass), mass) for distance, squared, mass in own]
        sides = [((side[0], mean[0]), side[1]) for side, mean in zip((image, text), means, strict=True)]
        negatives = sum_pairs(sweep, _negatives, None, *sides)
        total = jnp.zeros((), jnp.float32)
        for (_, squared, mass), (hinge, count) in zip(means, negatives, strict=True):
            total += weighted_mean(squared + _divide(hinge, count), mass > 0)
        return 0.5 * total

    def _label(self, image: tuple[jax.Array, jax.Array], text: Side) -> tuple[jax.Array, jax.Array]:
        """Of each unlabeled image, the probability of its likeliest caption, and the negative logarithm of that."""
        sweep = self.make_sweep(num_rows(image[0]), num_rows(text[0]))
        _, _, top = row_maxima(sweep, _captions, image, text)
        (total, likeliest, count), _ = sum_pairs(sweep, _likeliest, None, (image[0], (image[1], top)), text)
        loss = jnp.where(count > 0, safe_log(total, top) - _divide(likeliest, count), 0.0)
        return jnp.where(count > 0, jnp.exp(-loss), 0.0), loss


def _divide(total: jax.Array, mass: jax.Array) -> jax.Array:
    """The mean; 0 of nothing."""
    return jnp.where(mass > 0, total / jnp.where(mass > 0, mass, 1.0), 0.0)


def _distances(image: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Euclidean distances of unit rows, and their squares."""
    squared = jnp.maximum(2 - 2 * similarity(image, text), 0.0) + _FLOOR
    return jnp.sqrt(squared), squared


def _positives(_shared: None, image: Side, text: Side) -> tuple[Any, Any]:
    """Σ S d, Σ S d² and Σ S of images and of texts."""
    target, _ = make_targets(image[1], text[1])
    distance, squared = _distances(image[0], text[0])
    return tuple(  # type: ignore[return-value]
        tuple(jnp.sum(x, axis) for x in (target * distance, target * squared, target)) for axis in (1, 0)
    )


def _negatives(_shared: None, image: Side, text: Side) -> tuple[Any, Any]:
    """Of each row and column, the sum of the squared hinges of its negatives, and their number."""
    (rows, row_own), (columns, column_own) = image[0], text[0]
    target, pairs = make_targets(image[1], text[1])
    distance, _ = _distances(rows, columns)
    among = pairs & ~(target > 0)

    def sums(own: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
        hinge = jnp.maximum(jax.nn.sigmoid(distance - jnp.expand_dims(own, axis)) - distance, 0.0) ** 2
        return jnp.sum(jnp.where(among, hinge, 0.0), axis), jnp.sum(among, axis, dtype=jnp.float32)

    return sums(row_own, 1), sums(column_own, 0)


def _captions(unlabeled: jax.Array, text: Labels) -> tuple[jax.Array, jax.Array]:
    """No targets: unlabeled images are compared with all captions."""
    among = unlabeled[:, None] & (text.valid & ~is_negative(text))[None, :]
    return jnp.zeros(among.shape, jnp.float32), among


def _likeliest(_shared: None, image: Side, text: Side) -> tuple[Any, tuple[()]]:
    """Σ exp(L - top), and the sum and the number of the largest logits."""
    unlabeled, top = image[1]
    _, among = _captions(unlabeled, text[1])
    logits = similarity(image[0], text[0])
    total = jnp.where(among, jnp.exp(jnp.where(among, logits - top[:, None], 0.0)), 0.0)
    largest = among & (logits >= top[:, None] - _TIE)
    each = total, jnp.where(largest, logits, 0.0), largest.astype(jnp.float32)
    return tuple(jnp.sum(x, axis=1) for x in each), ()
