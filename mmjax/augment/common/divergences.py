"""Divergences between the predictions of clean and of changed pairs, given as logits."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.core.numerics import EXCLUDED

Mask = Literal["abs", "correct", "rel"]


def jensen_shannon(a: jax.Array, b: jax.Array, *, where: jax.Array | None = None) -> jax.Array:
    """``JS(softmax a ‖ softmax b)`` over the last axis, in nats and in float32: [..., K] -> f32[...].

    With p and q the two distributions and m their mean (Lin 1991)::

        JS = ½ Σ p log(p/m) + ½ Σ q log(q/m),   log(p/m) = ln 2 - softplus(log q - log p)

    From 0, where the logits are equal, to ln 2. Written so, it needs no logarithm of a probability that is
    rounded to zero, and value and gradient are finite for all finite logits. Entries where ``where`` (bool, to be
    broadcast) is False take no part; where none is left the divergence is 0.
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
    """``1/B Σ_b m_b KL(softmax changed_b ‖ softmax clean_b)`` and the share of rows in the mask; B without padding."""
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
    share = jnp.sum(confident, dtype=jnp.float32) / count
    return jnp.sum(jnp.where(confident, divergence, 0.0)) / count, share


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

    Those are the ``negatives`` (or all, if there are fewer) with the highest clean logits. Also the share of these
    entries that are in the mask.
    """
    kept, further = (valid[:, None] & valid[None, :] & which for which in (positive, ~positive))
    height, hardest = jax.lax.top_k(jnp.where(further, clean, EXCLUDED), min(negatives, clean.shape[1]))
    log_p, log_p_not = jax.nn.log_sigmoid(clean), jax.nn.log_sigmoid(-clean)
    log_q, log_q_not = jax.nn.log_sigmoid(changed), jax.nn.log_sigmoid(-changed)
    divergence = jnp.exp(log_q) * (log_q - log_p) + jnp.exp(log_q_not) * (log_q_not - log_p_not)
    sure = jnp.exp(jnp.maximum(log_p, log_p_not))

    def chosen(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of the positives, and of the hardest negatives; zero elsewhere."""
        there = height > 0.5 * EXCLUDED
        return jnp.where(kept, x, 0), jnp.where(there, jnp.take_along_axis(x, hardest, axis=1), 0)

    if mask == "rel":
        threshold = threshold * jnp.max(jnp.concatenate(chosen(sure), axis=1))
    confident = sure > threshold
    if mask == "correct":
        confident &= (clean > 0) == positive

    def total(x: jax.Array) -> jax.Array:
        return sum((jnp.sum(part) for part in chosen(x)), jnp.zeros((), jnp.float32))

    count = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)
    share = total(confident.astype(jnp.float32)) / jnp.maximum(total(jnp.ones_like(clean)), 1.0)
    return total(jnp.where(confident, divergence, 0.0)) / count, share
