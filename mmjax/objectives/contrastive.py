"""InfoNCE over provenance targets: CLIP's objective, with soft and several positives."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.objectives.targets import Labelling, check_partners, labelled, partners, similarity, source_mass
from mmjax.types import Metrics, Provenance

_EXCLUDED = -1e30  # a finite stand-in for -inf, so that zero times it is zero


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Symmetric cross-entropy of in-batch retrieval (Radford et al. 2021, arXiv:2103.00020; soft targets).

    With logits ``L = scale · z_image z_textᵀ + bias`` and targets ``S`` (``source_mass``)::

        loss = ½ mean_i [lse_j L_ij - Σ_j S_ij L_ij / Σ_j S_ij] + ½ mean_j [lse_i L_ij - Σ_i S_ij L_ij / Σ_i S_ij]

    Means run over the rows (columns) that have a positive; padding is in no sum; a row of zero weight stays in
    the other side's normaliser, so it is a negative for all and has no loss of its own (NegCLIP's form).
    ``mask_partners`` leaves out the pairs that share an original without being positives under ``targets="identity"``.
    """

    targets: Labelling = "provenance"
    mask_partners: bool = False

    def __post_init__(self) -> None:
        check_partners(self.mask_partners, self.targets)

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
        target = source_mass(labelled(image_source, self.targets), labelled(text_source, self.targets))
        logits = scale * similarity(image, text)
        if bias is not None:
            logits += bias
        pairs = image_source.valid[:, None] & text_source.valid[None, :]
        if self.mask_partners:
            pairs &= ~partners(image_source, text_source, target)
        logits = jnp.where(pairs, logits, _EXCLUDED)
        rows, row_accuracy = _cross_entropy(logits, target, axis=1)
        columns, column_accuracy = _cross_entropy(logits, target, axis=0)
        metrics = {
            "image_to_text_accuracy": row_accuracy,
            "text_to_image_accuracy": column_accuracy,
        }
        return 0.5 * (rows + columns), metrics


def _cross_entropy(logits: jax.Array, target: jax.Array, *, axis: int) -> tuple[jax.Array, jax.Array]:
    """Mean soft cross-entropy along ``axis`` over the queries that have a positive, and how often one is on top."""
    mass = jnp.sum(target, axis)
    has = mass > 0
    positive = jnp.sum(target * logits, axis) / jnp.where(has, mass, 1.0)
    loss = jnp.where(has, jax.nn.logsumexp(logits, axis) - positive, 0.0)
    best = jnp.max(jnp.where(target > 0, logits, 2 * _EXCLUDED), axis)
    hit = has & (best >= jnp.max(logits, axis))
    queries = jnp.maximum(jnp.sum(has, dtype=jnp.float32), 1.0)
    return jnp.sum(loss) / queries, jnp.sum(hit, dtype=jnp.float32) / queries
