"""What mixes of examples share: partners, shares, and the provenance of what comes out."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.core.types import Provenance

Targets = Literal["provenance", "identity"]
"""Labels of a mix: by all that is in it, or by its first source alone, as if nothing had been mixed in."""

Draw = Literal["batch", "row"]
"""One random share for the whole batch, or one for each row."""


def flipped(rows: jax.Array) -> jax.Array:
    """Each row's partner: the batch in reverse order, an involution that moves rows between devices at most once."""
    return jnp.flip(rows, axis=0)


def beta_share(key: jax.Array, alpha: jax.Array, *, rows: int, draw: Draw) -> jax.Array:
    """Shares f32[rows, 1] ~ Beta(α, α), all equal where one is drawn for the batch; 1 where α is 0 (no mixing)."""
    safe = jnp.where(alpha > 0, alpha, 1.0)
    share = jax.random.beta(key, safe, safe, (1 if draw == "batch" else rows, 1), jnp.float32)
    return jnp.broadcast_to(jnp.where(alpha > 0, share, 1.0), (rows, 1))


def mixed_source(parts: list[tuple[Provenance, jax.Array]], targets: Targets) -> Provenance:
    """The provenance of rows made of several rows with shares f32[rows, 1]: all sources, weighted by the shares.

    A mix with padding is padding: ids of -1 come first in it.
    """
    ids = jnp.concatenate([source.ids for source, _ in parts], axis=1)
    weight = jnp.concatenate([share * source.weight for source, share in parts], axis=1)
    whole = jnp.stack([source.valid for source, _ in parts], axis=1).all(axis=1, keepdims=True)
    source = Provenance(ids=jnp.where(whole, ids, -1), weight=jnp.where(whole, weight, 0.0))
    return source if targets == "provenance" else first_source(source, parts[0][0])


def first_source(mixed: Provenance, first: Provenance) -> Provenance:
    """The labels of ``first`` for rows that ``mixed`` says are not padding."""
    valid = mixed.valid[:, None]
    return Provenance(ids=jnp.where(valid, first.ids, -1), weight=jnp.where(valid, first.weight, 0.0))


def lerp(a: jax.Array, b: jax.Array, share: jax.Array) -> jax.Array:
    """``share · a + (1 - share) · b`` in float32, in a's dtype; rows of any shape, share f32[rows, 1]."""
    share = share.reshape(-1, *(1,) * (a.ndim - 1))
    mixed = share * a.astype(jnp.float32) + (1 - share) * b.astype(jnp.float32)
    return mixed.astype(a.dtype)


def share_metrics(share: jax.Array) -> dict[str, jax.Array]:
    """How much of itself a row keeps: mean, spread, and the share of rows in each fifth of the way from 0 to 1."""
    fifth = jnp.clip(jnp.floor(5 * share), 0, 4)
    bins = {f"share_bin_{i}": jnp.mean(fifth == i, dtype=jnp.float32) for i in range(5)}
    return {"share_mean": jnp.mean(share), "share_sd": jnp.std(share), **bins}


def shared_source(a: Provenance, b: Provenance) -> jax.Array:
    """bool[N, M]: whether row i of a and row j of b have an example in common."""
    shared = jnp.zeros((a.ids.shape[0], b.ids.shape[0]), bool)
    for k in range(a.ids.shape[1]):
        for m in range(b.ids.shape[1]):
            positive = (a.weight[:, k, None] > 0) & (b.weight[None, :, m] > 0)
            shared |= positive & (a.ids[:, k, None] == b.ids[None, :, m])
    return shared
