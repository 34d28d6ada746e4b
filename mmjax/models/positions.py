"""Positions in a sequence: taking one of them, and turning queries and keys by them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Position = int | jax.Array
"""One position of each sequence: an int for all, or i32[B]."""
Rotation = tuple[jax.Array, jax.Array]
"""Cosines and sines f32[B or 1, N, head_width/2] by which each position's queries and keys are turned, pair by pair."""


def take_position(x: jax.Array, position: Position) -> jax.Array:
    """One position of each sequence: [B or 1, N, D] -> [B, 1, D]."""
    if isinstance(position, int):
        return x[:, position][:, None]
    x = jnp.broadcast_to(x, (position.shape[0], *x.shape[1:]))
    return jnp.take_along_axis(x, position[:, None, None], axis=1)


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Turns pairs of neighboring numbers (Su et al., arXiv:2104.09864): x [B,N,H,d] -> the same shape."""
    cos, sin = (table[:, :, None] for table in rotation)
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape).astype(x.dtype)


def rotation_at(rotation: Rotation, position: Position | None) -> Rotation:
    """The rotation of one position of each sequence; None: of all."""
    if position is None:
        return rotation
    cos, sin = (take_position(table, position) for table in rotation)
    return cos, sin
