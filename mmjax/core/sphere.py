"""Geometry of unit vectors, in float32 and with gradients that are finite everywhere."""

import math

import jax
import jax.numpy as jnp

_NEAR = 1e-8  # squared distance below which two points count as equal (or, to the opposite point, as opposite)


def unit(x: jax.Array) -> jax.Array:
    """Rows scaled to length one, in float32; a row of zeros stays zero and has a zero gradient.

    >>> unit(jnp.array([[3.0, 4.0]])).round(3).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def slerp(a: jax.Array, b: jax.Array, mix_ratio: jax.Array) -> jax.Array:
    """Spherical interpolation: the point on the arc between unit rows a and b, ``mix_ratio`` of the way from b to a.

    ``[sin(λθ) a + sin((1-λ)θ) b] / sin θ`` with λ = ``mix_ratio`` and θ the angle between a and b (Shoemake 1985).
    ``θ = 2 atan2(‖a - b‖, ‖a + b‖)`` is precise near 0 and π, where the arc cosine is not. Equal points give their
    straight mean; opposite points have no arc between them and give a.

    Args:
        a: [..., D].
        b: [..., D].
        mix_ratio: [..., 1] or a scalar, from 0 to 1.

    Returns:
        Unit rows f32[..., D].
    """
    difference = jnp.sum(jnp.square(a - b), axis=-1, keepdims=True)
    total = jnp.sum(jnp.square(a + b), axis=-1, keepdims=True)
    near, opposite = difference < _NEAR, total < _NEAR
    # Take roots of safe values only: the root of zero has no gradient, which where() would multiply by zero.
    defined = ~(near | opposite)
    d, s = jnp.sqrt(jnp.where(defined, difference, 1.0)), jnp.sqrt(jnp.where(defined, total, 1.0))
    angle = 2 * jnp.arctan2(d, s)
    sine = jnp.sin(angle)
    arc = (jnp.sin(mix_ratio * angle) * a + jnp.sin((1 - mix_ratio) * angle) * b) / sine
    line = mix_ratio * a + (1 - mix_ratio) * b
    return jnp.where(near, line, jnp.where(opposite, a, unit(arc)))


def uniformity(x: jax.Array) -> jax.Array:
    """``log mean_{i≠j} exp(-2 ‖x_i - x_j‖²)`` of rows f32[n, D] (Wang and Isola 2020, arXiv:2005.10242); f32[].

    It is 0 if all rows are one point, and lower the more evenly they lie on the sphere. Memory is n².

    >>> uniformity(jnp.array([[1.0, 0.0], [0.0, 1.0]])).item()
    -4.0
    """
    n = x.shape[0]
    if n < 2:
        return jnp.zeros(())
    square = jnp.sum(jnp.square(x), axis=1)
    cosine = jnp.einsum("nd,md->nm", x, x, precision=jax.lax.Precision.HIGHEST)
    near = -2 * jnp.maximum(square[:, None] + square[None, :] - 2 * cosine, 0.0)
    near = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, near)
    # Row by row first: one float32 sum of n² numbers would lose digits.
    return jax.nn.logsumexp(jax.nn.logsumexp(near, axis=1)) - math.log(n * (n - 1))


def modality_gap(image: jax.Array, text: jax.Array) -> jax.Array:
    """``‖mean image - mean text‖`` of unit rows f32[n, D], f32[m, D] (Liang et al. 2022, arXiv:2203.02053); f32[]."""
    return jnp.sqrt(jnp.sum(jnp.square(jnp.mean(image, axis=0) - jnp.mean(text, axis=0))))
