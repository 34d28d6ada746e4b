"""Cross-entropies of rows against columns, for any choice of targets and of columns to compare with."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.numerics import EXCLUDED
from mmjax.objectives.common.pair_sums import reduce_pairs, sum_pairs
from mmjax.objectives.common.sweep import Sweep
from mmjax.objectives.common.targets import similarity

Relation = Callable[[Any, Any], tuple[jax.Array, jax.Array]]
"""What is known of n rows and of m columns, to targets f32[n, m] and bool[n, m]: the pairs of the normalizer.

``targets.make_targets`` is one. Pairs with padding must have target 0 and must not be in the normalizer.
"""

Query = tuple[jax.Array, Any]
"""Rows f32[N, D], whose products are logits, and what is known of them, such as their ``Labels``."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSoftmax:
    """For each row the logits of its targets and its normalizer; all f32[N]."""

    best: jax.Array  # the largest target's; EXCLUDED: there is none
    rest: jax.Array  # the largest of the normalizer's others; EXCLUDED: there is none
    normalizer: jax.Array  # log Σ exp L; EXCLUDED: of no pair
    positive: jax.Array  # Σ S L / Σ S; 0 without a target
    mass: jax.Array  # Σ S

    @property
    def has_positive(self) -> jax.Array:
        """bool[N]."""
        return self.mass > 0

    @property
    def has_negative(self) -> jax.Array:
        """bool[N]: whether the normalizer has a column that is no target."""
        return self.rest > EXCLUDED

    @property
    def loss(self) -> jax.Array:
        """f32[]: the mean cross-entropy of the rows that have a target."""
        return weighted_mean(self.normalizer - self.positive, self.has_positive)

    @property
    def accuracy(self) -> jax.Array:
        """f32[]: the fraction of these rows whose largest logit is a target's; a tie counts."""
        return weighted_mean((self.best >= self.rest).astype(jnp.float32), self.has_positive)


def weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """f32[]: the mean of ``values`` f32[N] by ``weight``, bool[N] or f32[N] of at least 0; 0 if all weights are."""
    weight = weight.astype(jnp.float32)
    total = jnp.sum(weight)
    return jnp.sum(jnp.where(weight > 0, weight * values, 0.0)) / jnp.where(total > 0, total, 1.0)


def class_loss(
    logits: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    *,
    soft: jax.Array | None = None,
    soft_weight: jax.Array | float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """The mean cross-entropy of the ``valid`` rows of f32[N, C] with labels i32[N], and the fraction that is right.

    ``soft`` are further targets f32[N, C], without a gradient, which count by ``soft_weight`` and labels by the rest.
    """
    logs = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(logs, labels[:, None], axis=1)[:, 0]
    if soft is not None:
        own = (1 - soft_weight) * own + soft_weight * jnp.sum(jax.lax.stop_gradient(soft) * logs, axis=1)
    right = (jnp.argmax(logits, axis=1) == labels).astype(jnp.float32)
    return weighted_mean(-own, valid), weighted_mean(right, valid)


def row_softmax(sweep: Sweep | None, relation: Relation, rows: Query, columns: Query) -> RowSoftmax:
    """Compares all rows with all columns; with gradients by both.

    Args:
        sweep: How tiles are walked over; None: the matrix is held as a whole.
        relation: Targets and normalizer of what is known of both sides.
        rows: The logits are the products of these with ``columns``, so one side is multiplied by the scale.
        columns: The other side.
    """
    best, rest, top = row_maxima(sweep, relation, rows, columns)
    tile = functools.partial(_sum_tile, relation)
    (total, positive, mass), _ = sum_pairs(sweep, tile, None, (rows[0], (rows[1], top)), columns)
    return RowSoftmax(
        best=best,
        rest=rest,
        normalizer=safe_log(total, top),
        positive=jnp.where(mass > 0, positive / jnp.where(mass > 0, mass, 1.0), 0.0),
        mass=mass,
    )


def row_maxima(
    sweep: Sweep | None, relation: Relation, rows: Query, columns: Query
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """f32[N] each, without gradients: each row's largest target, the largest of the others, and of the normalizer."""
    tile = functools.partial(_max_tile, relation)
    maxima, _ = reduce_pairs(sweep, tile, None, rows, columns, empty=EXCLUDED, merge=_maximum)
    return maxima


def safe_log(total: jax.Array, top: jax.Array) -> jax.Array:
    """``top + log(total)``; EXCLUDED where the total is 0."""
    present = total > 0
    return jnp.where(present, top + jnp.log(jnp.where(present, total, 1.0)), EXCLUDED)


def _max_tile(relation: Relation, _: None, rows: Query, columns: Query) -> tuple[Any, tuple[()]]:
    target, among = relation(rows[1], columns[1])
    logits = similarity(rows[0], columns[0])

    def largest(where: jax.Array) -> jax.Array:
        return jnp.max(jnp.where(where, logits, EXCLUDED), axis=1)

    return (largest(target > 0), largest(among & ~(target > 0)), largest(among)), ()


def _sum_tile(relation: Relation, _: None, rows: Query, columns: Query) -> tuple[Any, tuple[()]]:
    known, top = rows[1]
    target, among = relation(known, columns[1])
    logits = similarity(rows[0], columns[0])
    total = jnp.sum(jnp.where(among, jnp.exp(jnp.where(among, logits - top[:, None], 0.0)), 0.0), axis=1)
    return (total, jnp.sum(target * logits, axis=1), jnp.sum(target, axis=1)), ()


def _maximum(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.maximum, a, b)
