"""Layers of the networks that augmentations train: float32, with dropout from a key that is passed in."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.numerics import broadcast_parameter


def apply_dropout(x: jax.Array, key: jax.Array, *, rate: float) -> jax.Array:
    """Zeroes each entry with probability ``rate`` and scales the others by 1/(1 - rate)."""
    if rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0.0)


def apply_linear(layer: nnx.Linear, x: jax.Array) -> jax.Array:
    """``x · kernel + bias`` in x's dtype: for sequences, matrix products in float32 would cost too much."""
    y = x @ layer.kernel[...].astype(x.dtype)
    return y if layer.bias is None else y + broadcast_parameter(layer.bias[...], y.shape, x.dtype)


def make_zero_linear(inputs: int, outputs: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear map that starts at zero; with no nonlinearity after it, it has a gradient there."""
    return nnx.Linear(inputs, outputs, kernel_init=nnx.initializers.zeros, rngs=rngs)


class MlpLayer(nnx.Module):
    """``dropout(relu(linear(norm(x))))``."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(inputs, rngs=rngs)
        self.linear = nnx.Linear(inputs, outputs, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array, *, dropout: float) -> jax.Array:
        """x f32[..., inputs] -> f32[..., outputs]."""
        return apply_dropout(jax.nn.relu(self.linear(self.norm(x))), key, rate=dropout)


class TransformerLayer(nnx.Module):
    """A pre-norm transformer layer (Vaswani et al., arXiv:1706.03762) over the second axis of [B, tokens, width]."""

    def __init__(self, width: int, *, heads: int, hidden: int, rngs: nnx.Rngs):
        self.heads = heads
        self.norm_1, self.norm_2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.qkv, self.out = nnx.Linear(width, 3 * width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(width, hidden, rngs=rngs), nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array, *, dropout: float, mask: jax.Array | None = None) -> jax.Array:
        """x f32[B, tokens, width] -> the same shape; ``mask`` bool[B, tokens]: which can be attended to (None: all)."""
        keys = jax.random.split(key, 3)
        rows, tokens, width = x.shape
        q, k, v = jnp.moveaxis(self.qkv(self.norm_1(x)).reshape(rows, tokens, 3, self.heads, -1), 2, 0)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        if mask is not None:
            logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), v)
        x = x + apply_dropout(self.out(mixed.reshape(rows, tokens, width)), keys[0], rate=dropout)
        inner = apply_dropout(jax.nn.relu(self.fc1(self.norm_2(x))), keys[1], rate=dropout)
        return x + apply_dropout(self.fc2(inner), keys[2], rate=dropout)


def apply_layers(
    layers: nnx.List, x: jax.Array, key: jax.Array, *, dropout: float, **options: jax.Array | None
) -> jax.Array:
    """Layers one after another, each with a key of its own; all get ``options``."""
    for layer, layer_key in zip(layers, jax.random.split(key, max(len(layers), 1)), strict=False):
        x = layer(x, layer_key, dropout=dropout, **options)
    return x


def make_layers(make: Callable[[int, int], nnx.Module], widths: list[int]) -> nnx.List:
    """``make(inputs, outputs)`` for each pair of consecutive widths."""
    return nnx.List([make(a, b) for a, b in itertools.pairwise(widths)])
