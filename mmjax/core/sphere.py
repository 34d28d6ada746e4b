"""Geometry of unit vectors, in float32 and with gradients that are finite everywhere."""

import jax
import jax.numpy as jnp

_NEAR = 1e-8  # squared distance (from the same or the opposite point) below which an arc is a line, or undefined


def unit(x: jax.Array) -> jax.Array:
    """Rows of length one, in float32; a row of zeros stays zero and has a zero gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def slerp(a: jax.Array, b: jax.Array, share: jax.Array) -> jax.Array:
    """The point on the arc between unit rows a and b, ``share`` of the way from b to a: [..., D].

    ``[sin(λθ) a + sin((1-λ)θ) b] / sin θ`` with ``λ = share`` and θ the angle between a and b (Shoemake 1985). The
    angle is ``2 atan2(‖a - b‖, ‖a + b‖)``, which keeps its digits at both ends, where the arc cosine loses them.
    Between equal points the result is the straight mean; opposite points have no arc, and give a.
    """
    apart = jnp.sum(jnp.square(a - b), axis=-1, keepdims=True)
    across = jnp.sum(jnp.square(a + b), axis=-1, keepdims=True)
    near, opposite = apart < _NEAR, across < _NEAR
    # Roots of the safe values only: those of zero have no gradient, and where() would multiply it by zero.
    defined = ~(near | opposite)
    d, s = jnp.sqrt(jnp.where(defined, apart, 1.0)), jnp.sqrt(jnp.where(defined, across, 1.0))
    angle = 2 * jnp.arctan2(d, s)
    sine = jnp.sin(angle)
    arc = (jnp.sin(share * angle) * a + jnp.sin((1 - share) * angle) * b) / sine
    line = share * a + (1 - share) * b
    return jnp.where(near, line, jnp.where(opposite, a, unit(arc)))
