"""Mixes of examples: their partners, mix ratios, and the provenance of the mixed rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.core.types import Provenance

Targets = Literal["provenance", "identity"]
"""Labels of a mixed row: all its sources, or its first source alone, as if nothing had been mixed in."""

Draw = Literal["batch", "row"]
"""One random mix ratio for the whole batch, or one for each row."""


def flipped(rows: jax.Array) -> jax.Array:
    """Each row's partner: the batch in reverse order, an involution that moves rows between devices at most once."""
    return jnp.flip(rows, axis=0)


def draw_mix_ratio(key: jax.Array, alpha: jax.Array, *, rows: int, draw: Draw) -> jax.Array:
    """f32[rows, 1] ~ Beta(α, α), equal in all rows if ``draw`` is ``batch``; 1 (no mixing) where α is 0."""
    safe = jnp.where(alpha > 0, alpha, 1.0)
    mix_ratio = jax.random.beta(key, safe, safe, (1 if draw == "batch" else rows, 1), jnp.float32)
    return jnp.broadcast_to(jnp.where(alpha > 0, mix_ratio, 1.0), (rows, 1))


def mixed_source(components: Sequence[tuple[Provenance, jax.Array]], targets: Targets) -> Provenance:
    """The provenance of rows that mix several rows.

    A mix that contains padding is padding: its ids are -1.

    Args:
        components: the provenance of each mixed batch with its mix ratio f32[rows, 1], the row's own first.
        targets: label by all sources, weighted by the mix ratios, or by the first component alone.
    """
    ids = jnp.concatenate([source.ids for source, _ in components], axis=1)
    weight = jnp.concatenate([mix_ratio * source.weight for source, mix_ratio in components], axis=1)
    whole = jnp.stack([source.valid for source, _ in components], axis=1).all(axis=1, keepdims=True)
    source = Provenance(ids=jnp.where(whole, ids, -1), weight=jnp.where(whole, weight, 0.0))
    if targets == "provenance":
        return source
    first, valid = components[0][0], source.valid[:, None]
    return Provenance(ids=jnp.where(valid, first.ids, -1), weight=jnp.where(valid, first.weight, 0.0))


def lerp(a: jax.Array, b: jax.Array, mix_ratio: jax.Array) -> jax.Array:
    """``λ a + (1 - λ) b`` in float32, in a's dtype, for rows of any shape and λ of shape f32[rows, 1]."""
    mix_ratio = mix_ratio.reshape(-1, *(1,) * (a.ndim - 1))
    mixed = mix_ratio * a.astype(jnp.float32) + (1 - mix_ratio) * b.astype(jnp.float32)
    return mixed.astype(a.dtype)


def mix_ratio_metrics(mix_ratio: jax.Array) -> dict[str, jax.Array]:
    """Mean, standard deviation, and the fraction of rows in each fifth of the range from 0 to 1."""
    fifth = jnp.clip(jnp.floor(5 * mix_ratio), 0, 4)
    bins = {f"mix_ratio_bin_{i}": jnp.mean(fifth == i, dtype=jnp.float32) for i in range(5)}
    return {"mix_ratio_mean": jnp.mean(mix_ratio), "mix_ratio_sd": jnp.std(mix_ratio), **bins}


def shared_source(a: Provenance, b: Provenance) -> jax.Array:
    """bool[N, M]: whether row i of a and row j of b have an example in common."""
    shared = jnp.zeros((a.ids.shape[0], b.ids.shape[0]), bool)
    for k in range(a.ids.shape[1]):
        for m in range(b.ids.shape[1]):
            positive = (a.weight[:, k, None] > 0) & (b.weight[None, :, m] > 0)
            shared |= positive & (a.ids[:, k, None] == b.ids[None, :, m])
    return shared
