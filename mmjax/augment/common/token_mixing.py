"""Tokens of one modality in the sequences of another: aligned by position, mixed in, and attended to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.augment.common.base import Features
from mmjax.augment.common.layers import apply_linear
from mmjax.augment.common.mixing import flipped
from mmjax.core.numerics import EXCLUDED
from mmjax.core.types import Provenance

Side = Literal["text", "image"]

_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Modality:
    """The sequences of one modality, a row for each example."""

    side: Side
    tokens: jax.Array  # [B, T, D]
    normalized: jax.Array  # the same at mean 0 and variance 1, without gradient
    valid: jax.Array  # bool[B, T]: not padding
    content: jax.Array  # bool[B, T]: words or patches of valid examples, no special tokens
    source: Provenance  # of B rows


def split_modalities(clean: Features) -> list[Modality]:
    """Language, by each example's first caption, then the modalities of images in their order."""
    pairs, n = clean.pairs(), clean.examples
    if pairs.token_mask is None:
        raise ValueError(f"text features of shape {pairs.text.shape}: expected sequences and their token mask")

    def make(side: Side, tokens: jax.Array, valid: jax.Array, content: jax.Array, source: Provenance) -> Modality:
        normalized = jax.lax.stop_gradient(normalize_tokens(tokens)[0])
        content = content & source.valid[:, None]
        return Modality(side=side, tokens=tokens, normalized=normalized, valid=valid, content=content, source=source)

    text, token_mask, source = jax.tree.map(lambda x: x[:n], (pairs.text, pairs.token_mask, pairs.text_source))
    modalities = [make("text", text, token_mask.valid, token_mask.content, source)]
    for start in range(0, clean.image.shape[0], n):
        rows = clean.image, clean.image_source, clean.image_valid
        tokens, source, valid = jax.tree.map(lambda x, i=start: x[i : i + n], rows)
        content = valid & (jnp.arange(tokens.shape[1]) >= clean.num_prefix_tokens)
        modalities.append(make("image", tokens, valid, content, source))
    return modalities


def shares_example_with_partner(source: Provenance) -> jax.Array:
    """bool[B]: whether a row and its partner (``flipped``) have an example in common."""
    counts = source.weight > 0
    same = source.ids[:, :, None] == flipped(source.ids)[:, None, :]
    return jnp.any(same & counts[:, :, None] & flipped(counts)[:, None, :], axis=(1, 2))


def normalize_tokens(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tokens [..., D] at mean 0 and variance 1, in their dtype, and their standard deviations f32[..., 1]."""
    rows = x.astype(jnp.float32)
    rows = rows - jnp.mean(rows, axis=-1, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(jnp.square(rows), axis=-1, keepdims=True) + _EPSILON)
    return (rows / deviation).astype(x.dtype), deviation


def align_by_position(other: jax.Array, content: jax.Array, *, onto: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each content position of a sequence, the content token at the same relative position of another.

    Of n own content positions the r-th (from 0) gets the token ``⌊(r + ½) m / n⌋`` of the other's m.

    Args:
        other: tokens [B, T, D].
        content: bool[B, T], their content positions.
        onto: bool[B, L], the own content positions.

    Returns:
        Tokens [B, L, D], and bool[B, L]: whether there is such a token.
    """
    n, m = (jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.int32) for mask in (onto, content))
    rank = jnp.cumsum(onto, axis=1, dtype=jnp.int32) - 1
    # In integers: a rounded product could miss its floor by one.
    nearest = (2 * rank + 1) * m // jnp.maximum(2 * n, 1)
    nearest = jnp.clip(nearest, 0, jnp.maximum(m - 1, 0))
    positions = jnp.argsort(~content, axis=1, stable=True)  # content positions first, in their order
    index = jnp.take_along_axis(positions, nearest, axis=1)
    return jnp.take_along_axis(other, index[..., None], axis=1), onto & (m > 0)


def mix_tokens(
    own: jax.Array,  # [B, L, D]
    others: Sequence[tuple[jax.Array, jax.Array]],  # tokens [B, L, D], and bool[B, L]: where there are any
    u: jax.Array,  # f32[B, L] ~ U(0, 1)
    *,
    probabilities: tuple[jax.Array, jax.Array],  # of the first other, and of each further one
    content: jax.Array,  # bool[B, L]
) -> tuple[jax.Array, jax.Array]:
    """Replaces own content tokens by those of others; also returns which other each came from, i32[B, L], 0 for own.

    With ``p, q = probabilities`` a content position gets the first other's token where ``u > 1 - p``, and the m-th
    other's, m ≥ 2, where ``(m - 2) q ≤ u < (m - 1) q``.
    """
    first, further = probabilities
    mixed, origin = own, jnp.zeros(u.shape, jnp.int32)
    for m, (tokens, available) in enumerate(others, 1):
        drawn = u > 1 - first if m == 1 else (u >= (m - 2) * further) & (u < (m - 1) * further)
        replaced = drawn & available & content
        mixed = jnp.where(replaced[..., None], tokens, mixed)
        origin = jnp.where(replaced, m, origin)
    return mixed, origin


class CrossAttention(nnx.Module):
    """``softmax(q·kᵀ/√d)·v`` in ``heads`` heads (Vaswani et al., arXiv:1706.03762), without the residual."""

    def __init__(self, width: int, *, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        inner = heads * max(width // heads, 1)
        self.query, self.key, self.value = (nnx.Linear(width, inner, rngs=rngs) for _ in range(3))
        self.out = nnx.Linear(inner, width, rngs=rngs)

    def __call__(self, x: jax.Array, keys: jax.Array, *, valid: jax.Array) -> jax.Array:
        """x [B, Q, D], keys [B, K, D], valid bool[B, K] of the keys that count -> [B, Q, D]."""
        q, k, v = (
            apply_linear(layer, z).reshape(*z.shape[:2], self.heads, -1)
            for layer, z in ((self.query, x), (self.key, keys), (self.value, keys))
        )
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(valid[:, None, None, :], logits, EXCLUDED), axis=-1).astype(v.dtype)
        return apply_linear(self.out, jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:2], -1))
