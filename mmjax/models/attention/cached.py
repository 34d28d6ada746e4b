"""Blocks over one new token of each sequence: the keys and values of those before it are kept."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx


class KeyValues(NamedTuple):
    """Keys and values [B, L, H, d] of the tokens so far; of stacked blocks, [layers, B, L, H, d]."""

    keys: jax.Array
    values: jax.Array

    @classmethod
    def empty(cls, attn: Any, *, layers: int, batch: int, length: int, dtype: Any) -> KeyValues:
        """Room for ``length`` tokens in each of ``layers`` blocks with attention like ``attn``."""
        zeros = jnp.zeros((layers, batch, length, *attn.key.outputs), dtype)
        return cls(zeros, zeros)

    def put(self, start: jax.Array | int, keys: jax.Array, values: jax.Array) -> KeyValues:
        """With the keys and values of tokens from position ``start`` on."""
        put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=1)  # noqa: E731
        return KeyValues(put(self.keys, keys), put(self.values, values))


def attend_next(attn: Any, x: jax.Array, cache: KeyValues, position: jax.Array) -> tuple[jax.Array, KeyValues]:
    """Attention of the token at ``position`` to itself and those before it.

    Args:
        attn: An ``Attention``.
        x: [B, 1, D], the token.
        cache: Of one block.
        position: i32[].

    Returns:
        [B, 1, D], and the cache with the token.
    """
    cache = cache.put(position, *attn.keys_values(x))
    mask = (jnp.arange(cache.keys.shape[1]) <= position)[None, None, None, :]
    return attn.attend_to(x, *cache, mask=mask), cache


def run_next(blocks: nnx.Module, x: jax.Array, cache: Any, step: Any) -> tuple[jax.Array, Any]:
    """All blocks of a stack over one new token.

    Args:
        blocks: A stack.
        x: [B, 1, D].
        cache: A tree of arrays [layers, …].
        step: ``step(block, x, cache_of_block)`` returns the token after this block, and the cache with it.
    """
    graph, state = nnx.split(blocks)

    def body(x: jax.Array, layer: tuple[dict[str, Any], Any]) -> tuple[jax.Array, Any]:
        params, own = layer
        return step(nnx.merge(graph, params), x, own)

    return jax.lax.scan(body, x, (nnx.to_pure_dict(state), cache))


def next_of_block(block: Any, x: jax.Array, cache: KeyValues, position: jax.Array) -> tuple[jax.Array, KeyValues]:
    """A causal ``Block`` over the token at ``position``; for the arguments see ``attend_next``."""
    attended, cache = attend_next(block.attn, block.ln_1(x) if block.block_norm == "pre" else x, cache, position)
    return block.complete(x, attended), cache
