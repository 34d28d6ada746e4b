"""Divergences between the predictions for clean and for changed pairs, given as logits."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.core.numerics import EXCLUDED

Mask = Literal["abs", "correct", "rel"]
"""Which clean predictions are confident (see ``lemda``)."""


def jensen_shannon(a: jax.Array, b: jax.Array, *, where: jax.Array | None = None) -> jax.Array:
    """``JS(softmax a ‖ softmax b)`` over the last axis, in nats and in float32: [..., K] -> f32[...].

    With p and q the two distributions and m their mean (Lin 1991)::

        JS = ½ Σ p log(p/m) + ½ Σ q log(q/m),   log(p/m) = ln 2 - softplus(log q - log p)

    From 0, for equal logits, to ln 2. In this form no logarithm is taken of a probability rounded to zero, and value
    and gradient are finite for all finite logits. Entries where ``where`` (bool, broadcast) is False do not count;
    if none counts, the divergence is 0.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    if where is not None:
        a, b = jnp.where(where, a, EXCLUDED), jnp.where(where, b, EXCLUDED)
    log_p, log_q = jax.nn.log_softmax(a, axis=-1), jax.nn.log_softmax(b, axis=-1)
    if where is not None:  # the difference of two excluded entries is their rounding error
        log_p, log_q = jnp.where(where, log_p, 0.0), jnp.where(where, log_q, 0.0)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    ahead = log_q - log_p
    ln2 = math.log(2)
    each = p * (ln2 - jax.nn.softplus(ahead)) + q * (ln2 - jax.nn.softplus(-ahead))
    if where is not None:
        each = jnp.where(where, each, 0.0)
    return 0.5 * jnp.sum(each, axis=-1)


def softmax_consistency(
    changed: jax.Array,  # f32[B, B] logits
    clean: jax.Array,  # f32[B, B] logits
    *,
    valid: jax.Array,  # bool[B]
    threshold: jax.Array,
    mask: Mask,
) -> tuple[jax.Array, jax.Array]:
    """``1/B Σ_b m_b KL(softmax changed_b ‖ softmax clean_b)`` over confident rows, and the fraction of confident rows.

    B are the valid rows. The threshold and ``mask`` decide which clean rows are confident (m).
    """
    log_q, log_p = (jax.nn.log_softmax(jnp.where(valid, x, EXCLUDED), axis=1) for x in (changed, clean))
    top = jnp.exp(jnp.max(log_p, axis=1))
    if mask == "rel":
        threshold = threshold * jnp.max(jnp.where(valid, top, 0.0))
    confident = valid & (top > threshold)
    if mask == "correct":
        confident &= jnp.argmax(log_p, axis=1) == jnp.arange(log_p.shape[0])
    both = valid[:, None] & valid[None, :]
    divergence = jnp.sum(jnp.where(both, jnp.exp(log_q) * (log_q - log_p), 0.0), axis=1)
    count = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)
    fraction = jnp.sum(confident, dtype=jnp.float32) / count
    return jnp.sum(jnp.where(confident, divergence, 0.0)) / count, fraction


def bernoulli_consistency(
    changed: jax.Array,  # f32[B, B] logits, bias included
    clean: jax.Array,  # f32[B, B] logits, bias included
    *,
    positive: jax.Array,  # bool[B, B]
    valid: jax.Array,  # bool[B]
    threshold: jax.Array,
    mask: Mask,
    negatives: int,
) -> tuple[jax.Array, jax.Array]:
    """``1/B Σ_b Σ_j m_bj KL(σ(changed_bj) ‖ σ(clean_bj))`` over row b's positives and its hardest negatives.

    The hardest are the ``negatives`` (or all, if there are fewer) with the highest clean logits. Also returns the
    fraction of these entries that are confident (m).
    """
    both_valid = valid[:, None] & valid[None, :]
    positives, others = both_valid & positive, both_valid & ~positive
    logits, hardest = jax.lax.top_k(jnp.where(others, clean, EXCLUDED), min(negatives, clean.shape[1]))
    log_p, log_p_not = jax.nn.log_sigmoid(clean), jax.nn.log_sigmoid(-clean)
    log_q, log_q_not = jax.nn.log_sigmoid(changed), jax.nn.log_sigmoid(-changed)
    divergence = jnp.exp(log_q) * (log_q - log_p) + jnp.exp(log_q_not) * (log_q_not - log_p_not)
    certainty = jnp.exp(jnp.maximum(log_p, log_p_not))

    def select(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The entries of positives, and of the hardest negatives; zero elsewhere."""
        exists = logits > 0.5 * EXCLUDED
        return jnp.where(positives, x, 0), jnp.where(exists, jnp.take_along_axis(x, hardest, axis=1), 0)

    if mask == "rel":
        threshold = threshold * jnp.max(jnp.concatenate(select(certainty), axis=1))
    confident = certainty > threshold
    if mask == "correct":
        confident &= (clean > 0) == positive

    def total(x: jax.Array) -> jax.Array:
        return sum((jnp.sum(entries) for entries in select(x)), jnp.zeros((), jnp.float32))

    count = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)
    fraction = total(confident.astype(jnp.float32)) / jnp.maximum(total(jnp.ones_like(clean)), 1.0)
    return total(jnp.where(confident, divergence, 0.0)) / count, fraction
