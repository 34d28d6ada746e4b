"""InfoNCE over provenance targets: CLIP's objective, with soft targets and several positives per row."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.numerics import EXCLUDED
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives.common.base import Base
from mmjax.objectives.common.sweep import Sweep
from mmjax.objectives.common.targets import Labels, embedding_gradients, make_targets, similarity
from mmjax.objectives.common.tiles import num_rows

_Scales = tuple[jax.Array, jax.Array]  # scale and bias, f32[]
_Side = tuple[jax.Array, Labels]  # unit rows f32[N, D] and their labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(Base):
    """Symmetric cross-entropy of in-batch retrieval (Radford et al. 2021, arXiv:2103.00020), with soft targets.

    With logits ``L = scale · z_image z_textᵀ + bias`` and targets ``S`` (``source_mass``)::

        loss = ½ mean_i [lse_j L_ij - Σ_j S_ij L_ij / Σ_j S_ij] + ½ mean_j [lse_i L_ij - Σ_i S_ij L_ij / Σ_i S_ij]

    Means run over the rows (columns) that have a positive. Padding is in no sum. A row of zero weight stays in the
    other side's normalizer: it is a negative for every row and has no loss of its own, as in NegCLIP.
    ``mask_partners`` leaves out the pairs that share an original without being positives under ``targets="identity"``.

    For the options see ``Base``. In tiles it takes two passes, because the gradient of a logit needs both normalizers.

    >>> from mmjax.core.types import Provenance
    >>> source = Provenance.from_ids(jnp.arange(4))
    >>> rows, scale = jnp.eye(4), jnp.float32(100)
    >>> loss, metrics = Objective()(rows, rows, image_source=source, text_source=source, scale=scale)
    >>> loss.item(), metrics["image_to_text_accuracy"].item()
    (0.0, 1.0)
    """

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
        scales = (scale, jnp.zeros((), jnp.float32) if bias is None else bias)
        labels = (self.make_labels(image_source), self.make_labels(text_source))
        sweep = self.make_sweep(num_rows(image), num_rows(text))
        if sweep is not None:
            return _tiled(sweep, image, text, scales, labels)
        return _loss_and_metrics(*_tile_stats(scales, (image, labels[0]), (text, labels[1])))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stats:
    """What the loss needs of each row's (or column's) logits, accumulated over tiles; all f32[N]."""

    best: jax.Array  # the largest positive
    rest: jax.Array  # the largest of all others; separate, because the compiler may round one logit in two ways
    total: jax.Array  # Σ exp(L - top)
    positive: jax.Array  # Σ S L
    mass: jax.Array  # Σ S

    @classmethod
    def empty(cls, rows: int) -> _Stats:
        """Before the first tile."""
        zero = jnp.zeros(rows, jnp.float32)
        return cls(best=zero + 2 * EXCLUDED, rest=zero + EXCLUDED, total=zero, positive=zero, mass=zero)

    @classmethod
    def from_logits(cls, logits: jax.Array, target: jax.Array, *, axis: int) -> _Stats:
        """Of one tile, reduced over ``axis``."""
        best = jax.lax.stop_gradient(jnp.max(jnp.where(target > 0, logits, 2 * EXCLUDED), axis))
        rest = jax.lax.stop_gradient(jnp.max(jnp.where(target > 0, EXCLUDED, logits), axis))
        top = jnp.maximum(best, rest)
        return cls(
            best=best,
            rest=rest,
            total=jnp.sum(jnp.exp(logits - jnp.expand_dims(top, axis)), axis),
            positive=jnp.sum(target * logits, axis),
            mass=jnp.sum(target, axis),
        )

    def merge(self, other: _Stats) -> _Stats:
        """Combined with the statistics of other logits of the same rows."""
        best, rest = jnp.maximum(self.best, other.best), jnp.maximum(self.rest, other.rest)
        top = jnp.maximum(best, rest)
        return _Stats(
            best=best,
            rest=rest,
            total=self.total * jnp.exp(self.top - top) + other.total * jnp.exp(other.top - top),
            positive=self.positive + other.positive,
            mass=self.mass + other.mass,
        )

    @property
    def top(self) -> jax.Array:
        """The largest logit, f32[N]."""
        return jnp.maximum(self.best, self.rest)

    @property
    def has_positive(self) -> jax.Array:
        """bool[N]."""
        return self.mass > 0

    @property
    def num_queries(self) -> jax.Array:
        """The number of rows that have a positive (at least 1), f32[]."""
        return jnp.maximum(jnp.sum(self.has_positive, dtype=jnp.float32), 1.0)

    @property
    def loss(self) -> jax.Array:
        """The mean soft cross-entropy of the rows that have a positive, f32[]."""
        positive = self.positive / jnp.where(self.has_positive, self.mass, 1.0)
        each = jnp.where(self.has_positive, self.top + jnp.log(self.total) - positive, 0.0)
        return jnp.sum(each) / self.num_queries

    @property
    def accuracy(self) -> jax.Array:
        """The fraction of these rows whose largest logit is a positive, f32[]; a tie counts."""
        return jnp.sum(self.has_positive & (self.best >= self.rest), dtype=jnp.float32) / self.num_queries

    @property
    def slopes(self) -> _Slopes:
        """The gradient of half the loss by the logits."""
        weight = jnp.where(self.has_positive, 0.5, 0.0) / self.num_queries
        return _Slopes(
            top=self.top,
            softmax=weight / jnp.where(self.has_positive, self.total, 1.0),
            target=weight / jnp.where(self.has_positive, self.mass, 1.0),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Slopes:
    """A logit's gradient is ``softmax · exp(L - top) - target · S`` of its row, plus that of its column; all f32[N]."""

    top: jax.Array
    softmax: jax.Array
    target: jax.Array


def _logits(scales: _Scales, image: _Side, text: _Side) -> tuple[jax.Array, jax.Array]:
    """Logits and targets of image rows by text rows."""
    scale, bias = scales
    target, pairs = make_targets(image[1], text[1])
    return jnp.where(pairs, scale * similarity(image[0], text[0]) + bias, EXCLUDED), target


def _tile_stats(scales: _Scales, image: _Side, text: _Side) -> tuple[_Stats, _Stats]:
    """The statistics of a tile's rows and columns."""
    logits, target = _logits(scales, image, text)
    return _Stats.from_logits(logits, target, axis=1), _Stats.from_logits(logits, target, axis=0)


def _tile_gradients(
    scales: _Scales, image: tuple[_Side, _Slopes], text: tuple[_Side, _Slopes]
) -> tuple[jax.Array, jax.Array]:
    """A tile's part of the gradients by image and text embeddings, without the factor ``scale``."""
    (row, row_slopes), (column, column_slopes) = image, text
    logits, target = _logits(scales, row, column)
    by_logit = (
        row_slopes.softmax[:, None] * jnp.exp(logits - row_slopes.top[:, None])
        + column_slopes.softmax[None, :] * jnp.exp(logits - column_slopes.top[None, :])
        - target * (row_slopes.target[:, None] + column_slopes.target[None, :])
    )
    return embedding_gradients(by_logit, row[0], column[0])


def _loss_and_metrics(rows: _Stats, columns: _Stats) -> tuple[jax.Array, Metrics]:
    metrics = {"image_to_text_accuracy": rows.accuracy, "text_to_image_accuracy": columns.accuracy}
    return 0.5 * (rows.loss + columns.loss), metrics


def _all_stats(
    sweep: Sweep, image: jax.Array, text: jax.Array, scales: _Scales, labels: tuple[Labels, Labels]
) -> tuple[_Stats, _Stats]:
    empty = (_Stats.empty, _Stats.empty)
    return sweep(_tile_stats, scales, (image, labels[0]), (text, labels[1]), empty=empty, merge=_Stats.merge)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled(
    sweep: Sweep, image: jax.Array, text: jax.Array, scales: _Scales, labels: tuple[Labels, Labels]
) -> tuple[jax.Array, Metrics]:
    """The loss and its metrics without the matrix; gradients by embeddings, scale and bias only."""
    return _loss_and_metrics(*_all_stats(sweep, image, text, scales, labels))


def _forward(
    sweep: Sweep, image: jax.Array, text: jax.Array, scales: _Scales, labels: tuple[Labels, Labels]
) -> tuple[tuple[jax.Array, Metrics], Any]:
    rows, columns = _all_stats(sweep, image, text, scales, labels)
    return _loss_and_metrics(rows, columns), (image, text, scales, labels, rows, columns)


def _backward(sweep: Sweep, residuals: Any, cotangents: tuple[jax.Array, Metrics]) -> tuple[Any, ...]:
    """Computes every tile again. The bias shifts all logits alike, so its gradient is zero."""
    image, text, scales, labels, rows, columns = residuals
    by_image, by_text = sweep(
        _tile_gradients,
        scales,
        ((image, labels[0]), rows.slopes),
        ((text, labels[1]), columns.slopes),
        empty=(lambda n: jnp.zeros((n, image.shape[1])), lambda m: jnp.zeros((m, text.shape[1]))),
        merge=jnp.add,
    )
    by_loss, scale = cotangents[0], scales[0]
    by_scale = by_loss * jnp.sum(image * by_image)
    return by_loss * scale * by_image, by_loss * scale * by_text, (by_scale, jnp.zeros_like(scales[1])), None


_tiled.defvjp(_forward, _backward)
