"""Which tokens of one sequence belong to which of another: by similarity, by transport, or by order; no gradients.

Each answer is a row of weights of sum 1 over the other sequence's tokens, for each own token; where no token of the
other sequence is valid the weights mean nothing and are only finite.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.core.numerics import EXCLUDED
from mmjax.core.sphere import unit

_EXACT = jax.lax.Precision.HIGHEST


def cosines(own: jax.Array, other: jax.Array) -> jax.Array:
    """Of all tokens of each pair of sequences in one space: [B, T, D], [B, S, D] -> f32[B, T, S], held still."""
    own, other = (unit(jax.lax.stop_gradient(x)) for x in (own, other))
    return jnp.einsum("btd,bsd->bts", own, other, precision=_EXACT)


def attention(similarity: jax.Array, other: jax.Array, *, temperature: float) -> jax.Array:
    """``softmax(similarity / temperature)`` over the tokens that ``other`` bool[B, S] calls valid: f32[B, T, S]."""
    logits = jax.lax.stop_gradient(similarity) / temperature
    return jax.nn.softmax(jnp.where(other[:, None, :], logits, EXCLUDED), axis=-1)


def transport(
    similarity: jax.Array,  # f32[B, T, S]
    own: jax.Array,  # bool[B, T]
    other: jax.Array,  # bool[B, S]
    *,
    temperature: float,
    iterations: int,
) -> jax.Array:
    """The entropic optimal transport of valid own tokens onto valid others, each row over its sum: f32[B, T, S].

    Both sides spread their mass evenly, and moving it costs ``1 - similarity``; ``iterations`` of Sinkhorn's algorithm
    (Cuturi 2013, arXiv:1306.0895) in the logarithmic domain, with ``K = similarity / temperature``::

        f_t = -log T - logsumexp_s (K_ts + g_s),   g_s = -log S - logsumexp_t (K_ts + f_t),   from g = 0
        weights_t = softmax_s (K_ts + g_s)

    Unlike in attention, of which it is all with no iterations, every valid token of the other side is used.
    """
    logits = jax.lax.stop_gradient(similarity) / temperature
    # A sequence without valid tokens would have an infinite mass at each; its weights are not used.
    own, other = (mask | ~jnp.any(mask, axis=1, keepdims=True) for mask in (own, other))
    mass = [-jnp.log(jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.float32)) for mask in (own, other)]
    logits = jnp.where(other[:, None, :], logits, EXCLUDED)

    def turn(_: jax.Array, g: jax.Array) -> jax.Array:
        f = mass[0] - jax.nn.logsumexp(logits + g[:, None, :], axis=2)
        g = mass[1] - jax.nn.logsumexp(jnp.where(own[:, :, None], logits + f[:, :, None], EXCLUDED), axis=1)
        return jnp.where(other, g, 0.0)

    g = jax.lax.fori_loop(0, iterations, turn, jnp.zeros_like(other, jnp.float32))
    return jax.nn.softmax(logits + g[:, None, :], axis=-1)


def hardened(weights: jax.Array) -> jax.Array:
    """The largest weight of each row becomes 1, the first of equal ones, and the others 0."""
    return jax.nn.one_hot(jnp.argmax(weights, axis=-1), weights.shape[-1], dtype=jnp.float32)


def entropy(weights: jax.Array) -> jax.Array:
    """``-Σ w log w`` over the last axis, in nats: [..., S] -> f32[...]."""
    positive = weights > 0
    return -jnp.sum(jnp.where(positive, weights * jnp.log(jnp.where(positive, weights, 1.0)), 0.0), axis=-1)


def ctc_path(
    log_probs: jax.Array,  # f32[B, T, K] of each frame
    labels: jax.Array,  # i32[B, L]
    valid: jax.Array,  # bool[B, L]: a number of labels from the first on
    *,
    blank: int,
) -> tuple[jax.Array, jax.Array]:
    """The likeliest path of connectionist temporal classification that spells the labels (Graves et al. 2006).

    The states are blank, label 0, blank, label 1, … blank: label ``l`` is ``2 l + 1``, and blanks are even. Each
    frame stays, goes one on, or skips a blank between two labels that differ (Viterbi). Returns the state of each
    frame, i32[B, T], and whether there is such a path, bool[B]: some label, and frames for all labels and for a blank
    between equal neighbours. Where there is none the states mean nothing.
    """
    frames = log_probs.shape[1]
    labels = jnp.where(valid, labels, 0)
    again = valid[:, 1:] & (labels[:, 1:] == labels[:, :-1])
    needed = jnp.sum(valid, axis=1) + jnp.sum(again, axis=1)
    feasible = valid[:, 0] & (needed <= frames)

    def one(log_probs: jax.Array, labels: jax.Array, count: jax.Array) -> jax.Array:
        states = jnp.arange(2 * labels.shape[0] + 1)
        spoken = jnp.where(states % 2 == 1, labels[jnp.minimum(states // 2, labels.shape[0] - 1)], blank)
        before = jnp.concatenate([jnp.full(2, blank), spoken[:-2]])
        skips = (spoken != blank) & (spoken != before) & (states > 1)
        emitted = log_probs[:, spoken]
        start = jnp.where(states < 2, emitted[0], EXCLUDED)

        def on(score: jax.Array, emission: jax.Array) -> tuple[jax.Array, jax.Array]:
            earlier = jnp.pad(score, (2, 0), constant_values=EXCLUDED)
            options = jnp.stack([score, earlier[1:-1], jnp.where(skips, earlier[:-2], EXCLUDED)])
            return jnp.max(options, axis=0) + emission, jnp.argmax(options, axis=0)

        def back(state: jax.Array, moves: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = jnp.maximum(state - moves[state], 0)  # where no path is, the way back may leave the states
            return state, state

        score, moves = jax.lax.scan(on, start, emitted[1:])
        end = 2 * count
        last = jnp.where(score[end] > score[jnp.maximum(end - 1, 0)], end, jnp.maximum(end - 1, 0))
        _, path = jax.lax.scan(back, last, moves, reverse=True)
        return jnp.append(path, last)

    path = jax.vmap(one)(jax.lax.stop_gradient(log_probs), labels, jnp.sum(valid, axis=1))
    return path, feasible


def ctc_positions(path: jax.Array) -> jax.Array:
    """The label of each frame of a path, i32[B, T]; a blank frame takes that of the nearest label frame.

    Of two equally near it takes the one before it.
    """
    frames = path.shape[1]
    place = jnp.arange(frames)
    label = path % 2 == 1
    before = jax.lax.cummax(jnp.where(label, place, -frames), axis=1)
    after = jax.lax.cummin(jnp.where(label, place, 2 * frames), axis=1, reverse=True)
    nearest = jnp.where(place - before <= after - place, before, after)
    return jnp.take_along_axis(path, jnp.clip(nearest, 0, frames - 1), axis=1) // 2
