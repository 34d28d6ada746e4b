"""Layers of the networks that augmentations train; float32, with dropout from a given key."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx


def dropped(x: jax.Array, key: jax.Array, *, share: float) -> jax.Array:
    """Zeroes each entry with probability ``share`` and scales the others by 1/(1 - share)."""
    if share == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - share, x.shape)
    return jnp.where(kept, x / (1 - share), 0.0)


def zero_linear(inputs: int, outputs: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear map that starts at zero and has a gradient there: nothing bends after it."""
    return nnx.Linear(inputs, outputs, kernel_init=nnx.initializers.zeros, rngs=rngs)


class Unit(nnx.Module):
    """``dropout(relu(linear(norm(x))))``."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(inputs, rngs=rngs)
        self.linear = nnx.Linear(inputs, outputs, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array, *, dropout: float) -> jax.Array:
        """x f32[..., inputs] -> f32[..., outputs]."""
        return dropped(jax.nn.relu(self.linear(self.norm(x))), key, share=dropout)


class Encoder(nnx.Module):
    """A pre-norm transformer layer (Vaswani et al., arXiv:1706.03762) over the second axis of [B, tokens, width]."""

    def __init__(self, width: int, *, heads: int, hidden: int, rngs: nnx.Rngs):
        self.heads = heads
        self.norm_1, self.norm_2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.qkv, self.out = nnx.Linear(width, 3 * width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(width, hidden, rngs=rngs), nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array, *, dropout: float, seen: jax.Array | None = None) -> jax.Array:
        """x f32[B, tokens, width] -> the same shape; ``seen`` bool[B, tokens] can be attended to (None: all)."""
        keys = jax.random.split(key, 3)
        rows, tokens, width = x.shape
        q, k, v = jnp.moveaxis(self.qkv(self.norm_1(x)).reshape(rows, tokens, 3, self.heads, -1), 2, 0)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        if seen is not None:
            logits = jnp.where(seen[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), v)
        x = x + dropped(self.out(mixed.reshape(rows, tokens, width)), keys[0], share=dropout)
        inner = dropped(jax.nn.relu(self.fc1(self.norm_2(x))), keys[1], share=dropout)
        return x + dropped(self.fc2(inner), keys[2], share=dropout)


def in_turn(layers: nnx.List, x: jax.Array, key: jax.Array, *, dropout: float, **given: jax.Array | None) -> jax.Array:
    """Layers one after the other, each with a key of its own; ``given`` is for all of them."""
    for layer, part in zip(layers, jax.random.split(key, max(len(layers), 1)), strict=False):
        x = layer(x, part, dropout=dropout, **given)
    return x


def stack(make: Callable[[int, int], nnx.Module], widths: list[int]) -> nnx.List:
    """``make(inputs, outputs)`` for each step of ``widths``."""
    return nnx.List([make(a, b) for a, b in itertools.pairwise(widths)])
