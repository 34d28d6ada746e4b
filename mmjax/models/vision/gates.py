"""Gated fusion: how much of each modality's features goes into the one embedding of an example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.config import ConfigError
from mmjax.core.numerics import EXCLUDED, broadcast_parameter
from mmjax.models.layers import Dense


class Gates(nnx.Module):
    """Weighs the features of several modalities by what they say themselves, and leaves out modalities that are absent.

    Of one example with the pooled features h_m f32[width] of each modality m, and the present modalities P::

        s_m = W h_m + b_m                                    scores, f32[width]
        g_m = exp(s_m) / Σ_{k ∈ P} exp(s_k), 0 if m ∉ P      gates: of each feature they sum to one over P
        h   = Σ_m g_m ⊙ h_m

    W and b start at zero, so that training starts from the mean of the present modalities. An absent one has a gate of
    exactly zero and no gradient, whatever its pixels are; an example without any has h = 0.

    The idea is AMF's (Yang et al. 2020, doi:10.1145/3394171.3413538): a module scores the features of the modalities,
    and for each feature a modality is drawn by the scores, with Gumbel-softmax. Code was never released, and sizes,
    temperature and number of draws are not known to us. Here h is the mean of such draws, so that embeddings are the
    same each time; W is one matrix for all modalities, which also share a tower, where AMF has a network for each.
    """

    def __init__(self, modalities: Sequence[str], width: int, *, rngs: nnx.Rngs, dtype: Any):
        if len(modalities) < 2:
            raise ConfigError(
                f"model.vision_cfg.fusion='gated': joins modalities, and data.modalities={tuple(modalities)} is one; "
                "name two or more, or use 'views'"
            )
        self.modalities, self.dtype = tuple(modalities), dtype
        start = lambda key, shape: jnp.zeros(shape)  # noqa: E731
        self.score = Dense((width,), (width,), init=start, bias=False, rngs=rngs, dtype=dtype)
        self.modality_bias = nnx.Param(jnp.zeros((len(self.modalities), width)))

    def __call__(self, pooled: jax.Array, present: jax.Array | None, *, names: Sequence[str]) -> jax.Array:
        """The fused features: [M·N, width] -> [N, width].

        Args:
            pooled: All rows of one modality, then those of the next.
            present: bool[N, M], which of these each example has; None: all.
            names: The modalities that ``pooled`` has, in its order.
        """
        features = pooled.reshape(len(names), -1, pooled.shape[-1])
        if present is None:
            has = jnp.ones((*features.shape[:2], 1), bool)
        else:
            has = present.T[..., None]
            features = jnp.where(has, features, jnp.zeros_like(features))
        weighted = self.weights(features, has, names=names) * features.astype(jnp.float32)
        return jnp.sum(weighted, axis=0).astype(self.dtype)

    def weights(self, features: jax.Array, has: jax.Array, *, names: Sequence[str]) -> jax.Array:
        """The gates f32[M, N, width] of features [M, N, width], where ``has`` bool[M, N, 1] says which are there."""
        rows = [self.modalities.index(name) for name in names]
        bias = broadcast_parameter(self.modality_bias[...][jnp.asarray(rows)][:, None], features.shape, jnp.float32)
        scores = jnp.where(has, self.score(features).astype(jnp.float32) + bias, EXCLUDED)
        return jnp.where(has, jax.nn.softmax(scores, axis=0), 0.0)
