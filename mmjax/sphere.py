"""Geometry of unit vectors, in float32 and with gradients that are finite everywhere."""

import jax
import jax.numpy as jnp


def unit(x: jax.Array) -> jax.Array:
    """Rows of length one, in float32; a row of zeros stays zero and has a zero gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))
