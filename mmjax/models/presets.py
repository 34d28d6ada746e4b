"""The named models (``model="ViT-B-16"``), and files of open_clip as models."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

from mmjax.core.config import choose
from mmjax.models import open_clip_json
from mmjax.models.config import ClipConfig, TextConfig, VisionConfig
from mmjax.models.joint_config import DecoderConfig, FusionConfig


def _siglip_base() -> ClipConfig:
    both: dict[str, Any] = {"activation": "gelu_tanh", "ln_eps": 1e-6, "width": 768, "layers": 12}
    half = (0.5, 0.5, 0.5)
    return ClipConfig(
        embed_dim=768,
        init_logit_scale=math.log(10.0),
        init_logit_bias=-10.0,
        vision_cfg=VisionConfig(
            **both, class_token=False, no_ln_pre=True, patch_bias=True, pool_type="map", proj_type="none",
            image_mean=half, image_std=half, image_resize="squash",
        ),
        text_cfg=TextConfig(
            **both, heads=12, context_length=64, vocab_size=32000, no_causal_mask=True, pool_type="last",
            proj_bias=True, hf_tokenizer_name="timm/ViT-B-16-SigLIP", tokenizer_clean="canonicalize",
        ),
    )  # fmt: skip


def _small(
    *, width: int, text_width: int, heads: int, layers: int, image_size: int = 32, context_length: int = 22
) -> ClipConfig:
    """Small models for small images; the vocabulary is that of the tokenizer."""
    return ClipConfig(
        embed_dim=width,
        init_logit_scale=math.log(14.0),
        vision_cfg=VisionConfig(
            image_size=image_size, patch_size=8, stem="conv", stem_widths=(width // 4, width // 2, width), width=width,
            head_width=width // heads, layers=layers, class_token=False, no_ln_pre=True, pool_type="avg",
        ),
        text_cfg=TextConfig(
            context_length=context_length, vocab_size=None, width=text_width, heads=heads, layers=layers,
            no_causal_mask=True, pool_type="mean", token_init_sd=0.1, position_init_sd=0.05,
        ),
    )  # fmt: skip


def _plain(*, width: int, text_width: int, heads: int, layers: int) -> ClipConfig:
    """A small model of CLIP's own parts alone, which other libraries can express."""
    return ClipConfig(
        embed_dim=width,
        init_logit_scale=math.log(14.0),
        vision_cfg=VisionConfig(
            image_size=32, patch_size=8, width=width, head_width=width // heads, layers=layers
        ),
        text_cfg=TextConfig(
            context_length=22, vocab_size=None, width=text_width, heads=heads, layers=layers, pool_type="eos",
            token_init_sd=0.1, position_init_sd=0.05,
        ),
    )  # fmt: skip


def _bert(*, layers: int, context_length: int, **options: Any) -> TextConfig:
    """The first layers of BERT-base; those with cross-attention are the fusion encoder's."""
    return TextConfig(
        width=768, heads=12, layers=layers, context_length=context_length, vocab_size=30522, num_positions=512,
        token_types=2, block_norm="post", ln_eps=1e-12, embed_norm=True, mask_padding=True, no_causal_mask=True,
        pool_type="first", proj_bias=True, position_init_sd=0.02, **options,
    )  # fmt: skip


def _albef() -> ClipConfig:
    vision = VisionConfig(
        image_size=256, no_ln_pre=True, patch_bias=True, ln_eps=1e-6, proj_bias=True, image_resize="squash"
    )
    return ClipConfig(
        embed_dim=256,
        max_logit_scale=1000.0,
        vision_cfg=vision,
        text_cfg=_bert(layers=6, context_length=25),
        fusion=FusionConfig(block_norm="post", ln_eps=1e-12),
    )


def _vilt() -> ClipConfig:
    half = (0.5, 0.5, 0.5)
    vision = VisionConfig(
        image_size=384, patch_size=32, layers=0, no_ln_pre=True, patch_bias=True, ln_eps=1e-6, image_resize="squash",
        final_ln_after_pool=True, image_mean=half, image_std=half,
    )  # fmt: skip
    fusion = FusionConfig(kind="joint", layers=12, ln_eps=1e-6, pool_tanh=True, word_head="own")
    return ClipConfig(vision_cfg=vision, text_cfg=_bert(layers=0, context_length=40), fusion=fusion)


def _coca() -> ClipConfig:
    return ClipConfig(
        vision_cfg=VisionConfig(attentional_pool="shared"),
        text_cfg=TextConfig(context_length=76, embed_cls=True, final_ln_after_pool=True),
        decoder=DecoderConfig(),
    )


def _cappa() -> ClipConfig:
    half = (0.5, 0.5, 0.5)
    vision = VisionConfig(
        class_token=False, no_ln_pre=True, patch_bias=True, pool_type="avg", ln_eps=1e-6, activation="gelu_tanh",
        image_mean=half, image_std=half, image_resize="squash",
    )  # fmt: skip
    return ClipConfig(
        embed_dim=768,
        vision_cfg=vision,
        text_cfg=dataclasses.replace(_siglip_base().text_cfg, layers=1),
        decoder=DecoderConfig(
            width=768, heads=12, layers=6, inputs="ids", cross_mlp=False, mask_token=True, qkv_bias="none",
            activation="gelu_tanh", ln_eps=1e-6,
        ),
    )  # fmt: skip


_PRESETS: dict[str, ClipConfig] = {
    "ViT-B-32": ClipConfig(vision_cfg=VisionConfig(patch_size=32)),
    "ViT-B-16": ClipConfig(),
    "ViT-S-16": ClipConfig(embed_dim=384, vision_cfg=VisionConfig(width=384), text_cfg=TextConfig(width=384, heads=6)),
    "ViT-L-14": ClipConfig(
        embed_dim=768,
        vision_cfg=VisionConfig(width=1024, layers=24, patch_size=14),
        text_cfg=TextConfig(width=768, heads=12),
    ),
    "ViT-B-16-SigLIP": _siglip_base(),
    "ALBEF-B-16": _albef(),
    "ViLT-B-32": _vilt(),
    "CoCa-B-16": _coca(),
    "CapPa-B-16": _cappa(),
    "scenes-tiny": _small(width=96, text_width=64, heads=4, layers=1),
    "scenes-tiny-clip": _plain(width=96, text_width=64, heads=4, layers=2),
    "scenes-small": _small(width=192, text_width=192, heads=6, layers=4),
    "photos-small": _small(width=256, text_width=256, heads=4, layers=8, image_size=96, context_length=32),
}


def names() -> list[str]:
    """The named models."""
    return sorted(_PRESETS)


def load(name: str | os.PathLike[str]) -> dict[str, Any]:
    """The section ``model`` with every key written out.

    Args:
        name: One of ``names()``, or the path of an open_clip model file (``.json``).
    """
    if os.fspath(name).endswith(".json"):
        config = open_clip_json.read(os.fspath(name))
    else:
        config = _PRESETS[choose(os.fspath(name), _PRESETS, path="model")]
    return dataclasses.asdict(config)
