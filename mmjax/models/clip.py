"""The dual encoder: an image tower and a text tower into one space, and a learned temperature."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from mmjax.core.row_sharding import platform_of
from mmjax.models.attention.choice import choose_kernel
from mmjax.models.config import ClipConfig, VisionConfig
from mmjax.models.decoder import Decoder
from mmjax.models.fusion import FusionEncoder
from mmjax.models.text import TextTower
from mmjax.models.vision.recognizer import Recognizer
from mmjax.models.vit import VisionTower


class Clip(nnx.Module):
    """CLIP (Radford et al., arXiv:2103.00020) and its relatives.

    Parameters are float32 and matrix products run in ``dtype``. Training keeps the parameters as a plain dictionary,
    which JAX flattens far faster than a module, and rebuilds the module inside the compiled function:

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> from mmjax.models.clip import Clip
    >>> from mmjax.models.config import ClipConfig, TextConfig, VisionConfig
    >>> config = ClipConfig(
    ...     embed_dim=16,
    ...     vision_cfg=VisionConfig(image_size=32, width=32, layers=1, head_width=16),
    ...     text_cfg=TextConfig(context_length=8, vocab_size=100, width=32, heads=2, layers=1),
    ... )
    >>> graph, state = nnx.split(Clip(config, rngs=nnx.Rngs(0)))
    >>> params = nnx.to_pure_dict(state)
    >>> @jax.jit
    ... def embed(params, tokens):
    ...     return nnx.merge(graph, nnx.State(params)).encode_text(tokens)
    >>> embed(params, jnp.ones((4, 8), jnp.int32)).shape
    (4, 16)

    Args:
        config: Sizes of both towers; ``text_cfg.vocab_size`` must be set.
        rngs: Random numbers for the initial values.
        dtype: Of matrix products and activations.
        row_sharding: How rows of activations lie over the devices; None leaves it to the compiler.
    """

    def __init__(
        self, config: ClipConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32, row_sharding: NamedSharding | None = None
    ):
        self.visual = make_tower(config, "visual", rngs=rngs, dtype=dtype, row_sharding=row_sharding)
        self.text = make_tower(config, "text", rngs=rngs, dtype=dtype, row_sharding=row_sharding)
        self.fusion = make_fusion(config, rngs=rngs, dtype=dtype, row_sharding=row_sharding) if config.fusion else None
        self.logit_scale = nnx.Param(jnp.float32(config.init_logit_scale))
        has_bias = config.init_logit_bias is not None
        self.logit_bias = nnx.Param(jnp.float32(config.init_logit_bias)) if has_bias else None
        make_joint = functools.partial(make_tower, config, rngs=rngs, dtype=dtype, row_sharding=row_sharding)
        self.decoder = make_joint("decoder") if config.decoder is not None else None
        self.recognizer = make_joint("recognizer") if config.recognizer is not None else None

    def encode_image(self, images: Mapping[str, jax.Array]) -> jax.Array:
        """Images {modality: u8[N,H,W,C]} -> f32[N',E], not normalized.

        N' is N, or with fusion ``views`` N times the number of modalities present, one modality after the other.
        """
        return self.visual(images)

    def encode_text(self, tokens: jax.Array) -> jax.Array:
        """Tokens i32[M,L] -> f32[M,E], not normalized."""
        return self.text(tokens)


def make_fusion(config: ClipConfig, *, rngs: nnx.Rngs, dtype: Any, row_sharding: Any = None) -> FusionEncoder:
    """The fusion encoder of ``Clip``."""
    assert config.fusion is not None
    return FusionEncoder(
        config.fusion,
        image_width=config.image_token_width,
        text=config.text_cfg,
        scan=_scans(config, row_sharding),
        remat=config.remat,
        matmul_precision=config.matmul_precision,
        rngs=rngs,
        dtype=dtype,
        row_sharding=row_sharding,
    )


def _scans(config: ClipConfig, row_sharding: Any) -> bool:
    return platform_of(row_sharding) != "gpu" if config.scan == "auto" else config.scan


def make_tower(config: ClipConfig, name: str, *, rngs: nnx.Rngs, dtype: Any, row_sharding: Any = None) -> Any:
    """One part of ``Clip``: ``visual``, ``text``, ``decoder`` or ``recognizer``."""
    shared: dict[str, Any] = {key: getattr(config, key) for key in ("remat", "matmul_precision")} | {
        "scan": _scans(config, row_sharding),
        "rngs": rngs,
        "dtype": dtype,
        "row_sharding": row_sharding,
    }
    if name == "decoder":
        return Decoder(config, **shared)
    if name == "recognizer":
        return Recognizer(config, rngs=rngs, dtype=dtype)
    section = config.vision_cfg if name == "visual" else config.text_cfg
    shared |= {
        "embed_dim": config.embed_dim,
        "attention": choose_kernel(config, section, dtype=dtype, row_sharding=row_sharding).kernel,
    }
    return VisionTower(section, **shared) if isinstance(section, VisionConfig) else TextTower(section, **shared)
