"""Alignments of two token sequences: by similarity, by optimal transport, or by order (CTC); without gradients.

Each own token gets weights of sum 1 over the other sequence's tokens. If no token of the other sequence is valid, the
weights are finite and mean nothing.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.numerics import EXCLUDED
from mmjax.core.sphere import unit

_EXACT = jax.lax.Precision.HIGHEST


def cosine_similarities(own: jax.Array, other: jax.Array) -> jax.Array:
    """Between all tokens of two sequences of one width: [B, T, D], [B, S, D] -> f32[B, T, S]."""
    own, other = (unit(jax.lax.stop_gradient(x)) for x in (own, other))
    return jnp.einsum("btd,bsd->bts", own, other, precision=_EXACT)


def attention_weights(similarity: jax.Array, other: jax.Array, *, temperature: float) -> jax.Array:
    """``softmax(similarity / temperature)`` over the valid tokens, ``other`` bool[B, S]: f32[B, T, S]."""
    logits = jax.lax.stop_gradient(similarity) / temperature
    return jax.nn.softmax(jnp.where(other[:, None, :], logits, EXCLUDED), axis=-1)


def transport_weights(
    similarity: jax.Array,  # f32[B, T, S]
    own: jax.Array,  # bool[B, T]
    other: jax.Array,  # bool[B, S]
    *,
    temperature: float,
    iterations: int,
) -> jax.Array:
    """Entropic optimal transport of valid own tokens to valid others, each row normalized to sum 1: f32[B, T, S].

    Both sides have evenly spread masses, and the cost is ``1 - similarity``. Sinkhorn's algorithm (Cuturi 2013,
    arXiv:1306.0895) in the logarithmic domain, with ``K = similarity / temperature``::

        f_t = -log T - logsumexp_s (K_ts + g_s),   g_s = -log S - logsumexp_t (K_ts + f_t),   from g = 0
        weights_t = softmax_s (K_ts + g_s)

    Unlike attention (the result without any iteration), it uses every valid token of the other side.
    """
    logits = jax.lax.stop_gradient(similarity) / temperature
    # Without valid tokens each would have infinite mass; such a sequence's weights are not used.
    own, other = (mask | ~jnp.any(mask, axis=1, keepdims=True) for mask in (own, other))
    mass = [-jnp.log(jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.float32)) for mask in (own, other)]
    logits = jnp.where(other[:, None, :], logits, EXCLUDED)

    def iterate(_: jax.Array, g: jax.Array) -> jax.Array:
        f = mass[0] - jax.nn.logsumexp(logits + g[:, None, :], axis=2)
        g = mass[1] - jax.nn.logsumexp(jnp.where(own[:, :, None], logits + f[:, :, None], EXCLUDED), axis=1)
        return jnp.where(other, g, 0.0)

    g = jax.lax.fori_loop(0, iterations, iterate, jnp.zeros_like(other, jnp.float32))
    return jax.nn.softmax(logits + g[:, None, :], axis=-1)


def make_hard(weights: jax.Array) -> jax.Array:
    """Sets the largest weight of each row to 1 (of equal ones the first), the others to 0."""
    return jax.nn.one_hot(jnp.argmax(weights, axis=-1), weights.shape[-1], dtype=jnp.float32)


def entropy(weights: jax.Array) -> jax.Array:
    """``-Σ w log w`` over the last axis, in nats: [..., S] -> f32[...]."""
    positive = weights > 0
    return -jnp.sum(jnp.where(positive, weights * jnp.log(jnp.where(positive, weights, 1.0)), 0.0), axis=-1)


def ctc_path(
    log_probs: jax.Array,  # f32[B, T, K] of each frame
    labels: jax.Array,  # i32[B, L]
    valid: jax.Array,  # bool[B, L]: True for labels, False for padding
    *,
    blank: int,
    frames: jax.Array | None = None,  # bool[B, T]: True for frames, False for padding at the end; None: all
) -> tuple[jax.Array, jax.Array]:
    """The likeliest CTC path that spells the labels (Graves et al. 2006), by the Viterbi algorithm.

    The states are blank, label 0, blank, label 1, … blank: label ``l`` is state ``2 l + 1``, and blanks are even. Each
    frame stays, advances by one, or skips the blank between two different labels.

    Returns:
        The state of each frame, i32[B, T], and whether there is such a path, bool[B]: at least one label, and enough
        frames for all labels and for a blank between equal adjacent ones. Without a path the states mean nothing.
    """
    labels = jnp.where(valid, labels, 0)
    repeated = valid[:, 1:] & (labels[:, 1:] == labels[:, :-1])
    needed = jnp.sum(valid, axis=1) + jnp.sum(repeated, axis=1)
    available = log_probs.shape[1] if frames is None else jnp.sum(frames, axis=1)
    feasible = valid[:, 0] & (needed <= available)

    def find_path(
        log_probs: jax.Array, labels: jax.Array, count: jax.Array, frames: jax.Array | None = None
    ) -> jax.Array:
        states = jnp.arange(2 * labels.shape[0] + 1)
        symbols = jnp.where(states % 2 == 1, labels[jnp.minimum(states // 2, labels.shape[0] - 1)], blank)
        before = jnp.concatenate([jnp.full(2, blank), symbols[:-2]])
        may_skip = (symbols != blank) & (symbols != before) & (states > 1)
        emitted = log_probs[:, symbols]
        start = jnp.where(states < 2, emitted[0], EXCLUDED)

        def advance(score: jax.Array, frame: tuple[jax.Array, Any]) -> tuple[jax.Array, jax.Array]:
            emission, is_frame = frame
            earlier = jnp.pad(score, (2, 0), constant_values=EXCLUDED)
            options = jnp.stack([score, earlier[1:-1], jnp.where(may_skip, earlier[:-2], EXCLUDED)])
            best, move = jnp.max(options, axis=0) + emission, jnp.argmax(options, axis=0)
            if is_frame is None:
                return best, move
            return jnp.where(is_frame, best, score), jnp.where(is_frame, move, 0)  # padding stays

        def trace_back(state: jax.Array, moves: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = jnp.maximum(state - moves[state], 0)  # without a path this may leave the states
            return state, state

        score, moves = jax.lax.scan(advance, start, (emitted[1:], None if frames is None else frames[1:]))
        end = 2 * count
        last = jnp.where(score[end] > score[jnp.maximum(end - 1, 0)], end, jnp.maximum(end - 1, 0))
        _, path = jax.lax.scan(trace_back, last, moves, reverse=True)
        return jnp.append(path, last)

    path = jax.vmap(find_path)(jax.lax.stop_gradient(log_probs), labels, jnp.sum(valid, axis=1), frames)
    return path, feasible


def ctc_positions(path: jax.Array) -> jax.Array:
    """The label of each frame of a path, i32[B, T]; a blank frame takes the nearest frame's, of two the earlier."""
    frames = path.shape[1]
    position = jnp.arange(frames)
    is_label = path % 2 == 1
    before = jax.lax.cummax(jnp.where(is_label, position, -frames), axis=1)
    after = jax.lax.cummin(jnp.where(is_label, position, 2 * frames), axis=1, reverse=True)
    nearest = jnp.where(position - before <= after - position, before, after)
    return jnp.take_along_axis(path, jnp.clip(nearest, 0, frames - 1), axis=1) // 2
