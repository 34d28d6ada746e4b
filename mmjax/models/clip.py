"""The dual encoder: two towers into one space, and the temperature that they are compared at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from mmjax.models.config import ClipConfig
from mmjax.models.text import TextTower
from mmjax.models.vit import VisionTower


class Clip(nnx.Module):
    """CLIP (Radford et al., arXiv:2103.00020) and its relatives.

    Parameters are float32 and products run in ``dtype``. Training keeps the parameters as a plain dictionary, which
    JAX flattens far faster at each call than modules, and makes the module again inside the compiled function::

        graph, state = nnx.split(Clip(config, rngs=nnx.Rngs(0)))
        params = nnx.to_pure_dict(state)

        @jax.jit
        def embed(params, tokens):
            return nnx.merge(graph, nnx.State(params)).encode_text(tokens)

    ``row_sharding`` says over which devices whoever made a mesh wants the rows of activations; None: over whichever.
    """

    def __init__(
        self, config: ClipConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32, row_sharding: NamedSharding | None = None
    ):
        shared: dict[str, Any] = {
            name: getattr(config, name) for name in ("embed_dim", "scan", "remat", "matmul_precision")
        }
        shared |= {"rngs": rngs, "dtype": dtype, "row_sharding": row_sharding}
        self.visual = VisionTower(config.vision_cfg, **shared)
        self.text = TextTower(config.text_cfg, **shared)
        self.logit_scale = nnx.Param(jnp.float32(config.init_logit_scale))
        biased = config.init_logit_bias is not None
        self.logit_bias = nnx.Param(jnp.float32(config.init_logit_bias)) if biased else None

    def encode_image(self, images: Mapping[str, jax.Array]) -> jax.Array:
        """Images {modality: u8[N,H,W,C]} -> f32[N',E], not normalised.

        N' is N, or with fusion ``views`` N times the number of modalities present, one modality after the other.
        """
        return self.visual(images)

    def encode_text(self, tokens: jax.Array) -> jax.Array:
        """Tokens i32[M,L] -> f32[M,E], not normalised."""
        return self.text(tokens)
