"""Sequences of frames as a batch holds them: features, and a last number that is 0 in padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def frame_mask(frames: jax.Array) -> jax.Array:
    """Which frames [N,T,D+1] are no padding: bool[N,T]."""
    return frames[..., -1] > 0


def clear_padding(frames: jax.Array) -> jax.Array:
    """The frames [N,T,D+1] with zeros for whatever stands in padding."""
    return jnp.where(frame_mask(frames)[..., None], frames, 0)


def mean_of_valid(tokens: jax.Array, valid: jax.Array | None) -> jax.Array:
    """The mean over the tokens [N,T,D] of a row that are ``valid`` bool[N,T] (None: all): f32[N,D]."""
    tokens = tokens.astype(jnp.float32)
    if valid is None:
        return jnp.mean(tokens, axis=1)
    weight = valid.astype(jnp.float32)[..., None]
    return jnp.sum(tokens * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1)
