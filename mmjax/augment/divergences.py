"""How far two distributions are from each other, given as logits."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

_EXCLUDED = -1e30


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
        a, b = jnp.where(where, a, _EXCLUDED), jnp.where(where, b, _EXCLUDED)
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
