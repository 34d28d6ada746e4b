"""Attention pooling: learned queries that attend to an image's tokens."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from mmjax.core.numerics import broadcast_parameter
from mmjax.models.layers import Attention, BlockSpec, LayerNorm, Mlp, normal


class MapHead(nnx.Module):
    """Attention pooling: a learned query attends to all tokens, then an MLP (Zhai et al., arXiv:2106.04560)."""

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs, dtype: Any):
        self.dtype = dtype
        self.probe = nnx.Param(normal(spec.width**-0.5)(rngs.params(), (spec.width,)))
        self.attn = Attention(spec, rngs=rngs, dtype=dtype)
        self.ln = LayerNorm(spec.width, eps=spec.ln_eps, dtype=dtype)
        self.mlp = Mlp(spec, rngs=rngs, dtype=dtype)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[N, T, width] -> [N, width]."""
        x = self.attn(broadcast_parameter(self.probe[...], (tokens.shape[0], 1, tokens.shape[2]), self.dtype), tokens)
        return (x + self.mlp(self.ln(x)))[:, 0]


class AttentionalPooler(nnx.Module):
    """Learned queries attend to all tokens (CoCa: Yu et al. 2022, arXiv:2205.01917, section 3.2)."""

    def __init__(self, spec: BlockSpec, queries: int, *, key_width: int, rngs: nnx.Rngs, dtype: Any):
        self.dtype = dtype
        self.probe = nnx.Param(normal(1.0)(rngs.params(), (queries, spec.width)))
        self.ln_q, self.ln_k = (LayerNorm(w, eps=spec.ln_eps, dtype=dtype) for w in (spec.width, key_width))
        self.attn = Attention(spec, keys_width=key_width, rngs=rngs, dtype=dtype)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[N, T, key_width] -> [N, queries, width]."""
        probe = self.ln_q(self.probe[...])
        return self.attn(broadcast_parameter(probe, (len(tokens), *probe.shape), self.dtype), self.ln_k(tokens))
