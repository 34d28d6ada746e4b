"""InfoNCE over provenance targets: CLIP's objective, with soft and several positives."""

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
from mmjax.objectives.common.targets import Labels, pulled, similarity, targets_of
from mmjax.objectives.common.tiles import count

_Scales = tuple[jax.Array, jax.Array]  # scale and bias, f32[]
_Side = tuple[jax.Array, Labels]  # unit rows f32[N, D] and what they are labelled with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(Base):
    """Symmetric cross-entropy of in-batch retrieval (Radford et al. 2021, arXiv:2103.00020; soft targets).

    With logits ``L = scale · z_image z_textᵀ + bias`` and targets ``S`` (``source_mass``)::

        loss = ½ mean_i [lse_j L_ij - Σ_j S_ij L_ij / Σ_j S_ij] + ½ mean_j [lse_i L_ij - Σ_i S_ij L_ij / Σ_i S_ij]

    Means run over the rows (columns) that have a positive; padding is in no sum; a row of zero weight stays in
    the other side's normaliser, so it is a negative for all and has no loss of its own (NegCLIP's form).
    ``mask_partners`` leaves out the pairs that share an original without being positives under ``targets="identity"``.
    ``impl`` and ``chunk``: see ``Base``; in tiles it takes two passes, as the gradient of a logit needs both
    normalisers.
    """

    def __call__(
        self,
        image: jax.Array,  # f32[N, D], unit rows
        text: jax.Array,  # f32[M, D], unit rows
        *,
        image_source: Provenance,
        text_source: Provenance,
        scale: jax.Array,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """The loss f32[] and in-batch accuracies."""
        scales = (scale, jnp.zeros((), jnp.float32) if bias is None else bias)
        sides = (self.labels(image_source), self.labels(text_source))
        sweep = self.sweep(count(image), count(text))
        if sweep is not None:
            return _in_tiles(sweep, image, text, scales, sides)
        return _result(*_seen(scales, (image, sides[0]), (text, sides[1])))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Queries:
    """What the loss needs to know of each row's (or each column's) logits, as far as they were seen; f32[N] all."""

    best: jax.Array  # the largest of a positive
    rest: jax.Array  # the largest of all others; apart, because the compiler may round one logit in two ways
    total: jax.Array  # Σ exp(L - top)
    positive: jax.Array  # Σ S L
    mass: jax.Array  # Σ S

    @classmethod
    def none(cls, rows: int) -> _Queries:
        """Before any logit."""
        zero = jnp.zeros(rows, jnp.float32)
        return cls(best=zero + 2 * EXCLUDED, rest=zero + EXCLUDED, total=zero, positive=zero, mass=zero)

    @classmethod
    def of(cls, logits: jax.Array, target: jax.Array, *, axis: int) -> _Queries:
        """Of a block of the matrix."""
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

    def merged(self, other: _Queries) -> _Queries:
        """Of these logits and others of the same queries."""
        best, rest = jnp.maximum(self.best, other.best), jnp.maximum(self.rest, other.rest)
        top = jnp.maximum(best, rest)
        return _Queries(
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
    def has(self) -> jax.Array:
        """bool[N]: that there is a positive."""
        return self.mass > 0

    @property
    def queries(self) -> jax.Array:
        """How many have one, f32[]."""
        return jnp.maximum(jnp.sum(self.has, dtype=jnp.float32), 1.0)

    @property
    def loss(self) -> jax.Array:
        """Mean soft cross-entropy of those, f32[]."""
        positive = self.positive / jnp.where(self.has, self.mass, 1.0)
        return jnp.sum(jnp.where(self.has, self.top + jnp.log(self.total) - positive, 0.0)) / self.queries

    @property
    def accuracy(self) -> jax.Array:
        """How often a positive is on top, f32[]; who ties with it has not beaten it."""
        return jnp.sum(self.has & (self.best >= self.rest), dtype=jnp.float32) / self.queries

    @property
    def slopes(self) -> _Slopes:
        """By the logits, of half the loss."""
        each = jnp.where(self.has, 0.5, 0.0) / self.queries
        return _Slopes(
            top=self.top,
            soft=each / jnp.where(self.has, self.total, 1.0),
            hard=each / jnp.where(self.has, self.mass, 1.0),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Slopes:
    """Of a logit: ``soft · exp(L - top) - hard · S`` for its row, and as much for its column; f32[N] all."""

    top: jax.Array
    soft: jax.Array
    hard: jax.Array


def _block(scales: _Scales, image: _Side, text: _Side) -> tuple[jax.Array, jax.Array]:
    """Logits and targets of image by text rows."""
    scale, bias = scales
    target, pairs = targets_of(image[1], text[1])
    return jnp.where(pairs, scale * similarity(image[0], text[0]) + bias, EXCLUDED), target


def _seen(scales: _Scales, image: _Side, text: _Side) -> tuple[_Queries, _Queries]:
    """What a tile shows of its rows and columns."""
    logits, target = _block(scales, image, text)
    return _Queries.of(logits, target, axis=1), _Queries.of(logits, target, axis=0)


def _pull(scales: _Scales, image: tuple[_Side, _Slopes], text: tuple[_Side, _Slopes]) -> tuple[jax.Array, jax.Array]:
    """What a tile adds to the gradient by its rows' and columns' embeddings, but for the scale."""
    (row, of_row), (column, of_column) = image, text
    logits, target = _block(scales, row, column)
    by_logit = (
        of_row.soft[:, None] * jnp.exp(logits - of_row.top[:, None])
        + of_column.soft[None, :] * jnp.exp(logits - of_column.top[None, :])
        - target * (of_row.hard[:, None] + of_column.hard[None, :])
    )
    return pulled(by_logit, row[0], column[0])


def _result(rows: _Queries, columns: _Queries) -> tuple[jax.Array, Metrics]:
    metrics = {"image_to_text_accuracy": rows.accuracy, "text_to_image_accuracy": columns.accuracy}
    return 0.5 * (rows.loss + columns.loss), metrics


def _passed(
    sweep: Sweep, image: jax.Array, text: jax.Array, scales: _Scales, sides: tuple[Labels, Labels]
) -> tuple[_Queries, _Queries]:
    empty = (_Queries.none, _Queries.none)
    return sweep(_seen, scales, (image, sides[0]), (text, sides[1]), empty=empty, merge=_Queries.merged)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_tiles(
    sweep: Sweep, image: jax.Array, text: jax.Array, scales: _Scales, sides: tuple[Labels, Labels]
) -> tuple[jax.Array, Metrics]:
    """The loss and its metrics without the matrix; gradients by embeddings, scale and bias alone."""
    return _result(*_passed(sweep, image, text, scales, sides))


def _forward(
    sweep: Sweep, image: jax.Array, text: jax.Array, scales: _Scales, sides: tuple[Labels, Labels]
) -> tuple[tuple[jax.Array, Metrics], Any]:
    rows, columns = _passed(sweep, image, text, scales, sides)
    return _result(rows, columns), (image, text, scales, sides, rows, columns)


def _backward(sweep: Sweep, saved: Any, given: tuple[jax.Array, Metrics]) -> tuple[Any, ...]:
    """Makes every tile again. The bias shifts all logits alike, which the loss does not see: its gradient is zero."""
    image, text, scales, sides, rows, columns = saved
    by_image, by_text = sweep(
        _pull,
        scales,
        ((image, sides[0]), rows.slopes),
        ((text, sides[1]), columns.slopes),
        empty=(lambda n: jnp.zeros((n, image.shape[1])), lambda m: jnp.zeros((m, text.shape[1]))),
        merge=jnp.add,
    )
    by_loss, scale = given[0], scales[0]
    by_scale = by_loss * jnp.sum(image * by_image)
    return by_loss * scale * by_image, by_loss * scale * by_text, (by_scale, jnp.zeros_like(scales[1])), None


_in_tiles.defvjp(_forward, _backward)
