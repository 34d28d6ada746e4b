"""Towers that open_clip's files name without their sizes: timm's image towers and transformers' text towers."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.models.config import TextConfig, VisionConfig

_HALF = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "image_resize": "squash"}
_PLAIN = {"layers": 12, "head_width": 64, "ln_eps": 1e-6, "patch_bias": True, "no_ln_pre": True}  # timm's defaults

_SIGLIP_SIZES: dict[str, dict[str, Any]] = {
    "base": {"width": 768, "layers": 12, "head_width": 64},
    "large": {"width": 1024, "layers": 24, "head_width": 64},
    "so400m": {"width": 1152, "layers": 27, "head_width": 72, "mlp_ratio": 3.7362},
    "giantopt": {"width": 1536, "layers": 40, "head_width": 96},
}
_EVA02 = {
    "mlp_ratio": 4 * 2 / 3, "mlp_type": "swiglu", "scale_fc": True, "scale_attn_inner": True, "qkv_bias": "qv",
    "rope": "row_column", "rope_grid": 16,
}  # fmt: skip
_PE = {
    "ln_eps": 1e-5, "patch_bias": False, "no_ln_pre": False, "rope": "column_row", "rope_offset": 1.0, "map_heads": 8,
    **_HALF,
}  # fmt: skip

_TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "eva_giant_patch14_224": (
        "token", {"width": 1408, "layers": 40, "head_width": 88, "mlp_ratio": 6144 / 1408, "qkv_bias": "qv"},
    ),
    "eva02_base_patch16_clip_224": ("token", {"width": 768, **_EVA02}),
    "eva02_large_patch14_clip_224": ("token", {"width": 1024, "layers": 24, **_EVA02}),
    "eva02_large_patch14_clip_336": ("token", {"width": 1024, "layers": 24, **_EVA02}),
    "eva02_enormous_patch14_clip_224": (
        "token",
        {
            "width": 1792, "layers": 64, "head_width": 112, "mlp_ratio": 15360 / 1792, "qkv_bias": "qv",
            "block_norm": "res_post",
        },
    ),
    "vit_pe_core_tiny_patch16_384": ("map", {"width": 192, **_PE, "rope_grid": 24}),
    "vit_pe_core_small_patch16_384": ("map", {"width": 384, **_PE, "rope_grid": 24}),
    "vit_pe_core_base_patch16_224": ("map", {"width": 768, **_PE, "rope_grid": 14}),
    "vit_pe_core_large_patch14_336": ("map", {"width": 1024, "layers": 24, **_PE, "rope_grid": 24}),
    "vit_pe_core_gigantic_patch14_448": (
        "map",
        {
            "width": 1536, "layers": 50, "head_width": 96, "mlp_ratio": 8960 / 1536, "class_token": False, **_PE,
            "rope_grid": 32, "rope_offset": 0.0, "map_mlp_ratio": 4.0,
        },
    ),
    "vit_base_mci_224": (
        "token",
        {
            "width": 768, "patch_size": 16, "stem": "patch_merge", "stem_widths": (192, 192, 768), "stem_norm": "batch",
            "patch_bias": False, "class_position": False, "image_mean": (0.0,) * 3, "image_std": (1.0,) * 3,
        },
    ),
    "vit_large_patch14_clip_224": (
        "token",
        {"width": 1024, "layers": 24, "ln_eps": 1e-5, "patch_bias": False, "no_ln_pre": False},
    ),
    "vit_medium_patch16_gap_256": (
        "avg", {"width": 512, "class_token": False, "qkv_bias": "none", "ls_init_value": 1e-6},
    ),
}  # fmt: skip
"""By name: the pooling that the name is built with, and sizes beside the patch's and the image's, which it contains."""

_BERT = {
    "width": 768, "heads": 12, "layers": 12, "ln_eps": 1e-12, "block_norm": "post", "embed_norm": True,
    "no_causal_mask": True, "mask_padding": True, "num_positions": 512, "pad_id": 0, "token_types": 2,
}  # fmt: skip
_ROBERTA = _BERT | {
    "ln_eps": 1e-5, "num_positions": 514, "positions_from_pad": True, "pad_id": 1, "eos_id": 2, "token_types": 1,
}  # fmt: skip
_LARGE = {"width": 1024, "heads": 16, "layers": 24}

_HF: dict[str, dict[str, Any]] = {
    "bert-base-uncased": _BERT | {"vocab_size": 30522, "eos_id": 102},
    "bert-large-uncased": _BERT | _LARGE | {"vocab_size": 30522, "eos_id": 102},
    "bert-base-cased": _BERT | {"vocab_size": 28996, "eos_id": 102},
    "bert-base-multilingual-cased": _BERT | {"vocab_size": 119547, "eos_id": 102},
    "distilbert-base-uncased": _BERT | {"vocab_size": 30522, "eos_id": 102, "token_types": 0, "layers": 6},
    "roberta-base": _ROBERTA | {"vocab_size": 50265},
    "roberta-large": _ROBERTA | _LARGE | {"vocab_size": 50265},
    "xlm-roberta-base": _ROBERTA | {"vocab_size": 250002},
    "xlm-roberta-large": _ROBERTA | _LARGE | {"vocab_size": 250002},
}


def timm_vision(name: str, *, pool: str | None, proj: str | None, proj_bias: bool, path: str) -> dict[str, Any]:
    """The image tower ``name`` of timm, with open_clip's ``timm_pool`` and ``timm_proj``; errors name ``path``.

    Without a projection of open_clip's own, timm's classifier takes its place, and that has a bias.
    """
    siglip = re.fullmatch(rf"vit_({'|'.join(_SIGLIP_SIZES)})_patch(\d+)_siglip_(\d+)", name)
    if siglip is not None:
        default_pool = "map"
        sizes = (
            _SIGLIP_SIZES[siglip[1]] | {"class_token": False, "activation": "gelu_tanh", "proj_type": "none"} | _HALF
        )
    elif name in _TIMM:
        default_pool, sizes = _TIMM[name]
    else:
        raise ConfigError(
            f"{path}.timm_model_name={name!r}: of timm's models only vit_SIZE_patchN_siglip_N, "
            f"{', '.join(_TIMM)} are supported"
        )
    kinds = {"token": "tok", "avg": "avg", "map": "map"}
    if (pool or default_pool) != default_pool:
        raise ConfigError(f"{path}.timm_pool={pool!r}: only {default_pool!r} is supported with {name}")
    allowed = (None, "", "none") if siglip else (None, "", "linear")
    if proj not in allowed:
        raise ConfigError(f"{path}.timm_proj={proj!r}: only {' or '.join(map(repr, allowed))} is supported with {name}")
    if siglip is None:
        sizes = {"proj_bias": proj_bias if proj == "linear" else True} | sizes
    sizes = {"image_size": int(name.rpartition("_")[2])} | sizes
    if patch := re.search(r"_patch(\d+)_", name):
        sizes["patch_size"] = int(patch[1])
    return _PLAIN | {"pool_type": kinds[default_pool]} | sizes


def hf_text(text: dict[str, Any], *, embed_dim: Any, path: str) -> dict[str, Any]:
    """The text tower of transformers that the section names; errors name ``path``.

    The pooling is that of ``hf_pooler_type``, and ``hf_proj_type`` a projection without biases. Of what describes
    open_clip's own tower, only ``context_length`` counts.
    """
    name = str(text["hf_model_name"])
    if name not in _HF:
        raise ConfigError(f"{path}.hf_model_name={name!r}: only {', '.join(_HF)} are supported")
    pooler, proj = text.get("hf_pooler_type", "mean_pooler"), text.get("hf_proj_type", "mlp")
    tower = _HF[name]
    poolings: dict[str | None, dict[str, Any]] = {
        "mean_pooler": {"pool_type": "mean"},
        "cls_last_hidden_state_pooler": {"pool_type": "first"},
        "cls_pooler": {"pool_type": "first", "pool_tanh": tower["token_types"] > 0},  # DistilBERT has no pooler
        None: {"pool_type": "mean"},
    }
    if pooler not in poolings:
        raise ConfigError(f"{path}.hf_pooler_type={pooler!r}: must be one of {', '.join(map(repr, poolings))}")
    if proj is None and embed_dim == tower["width"]:
        proj = "none"
    if proj not in ("linear", "mlp", "none"):
        raise ConfigError(
            f"{path}.hf_proj_type={proj!r}: must be 'linear', 'mlp', or None with embed_dim equal to width"
        )
    if text.get("output_tokens"):
        raise ConfigError(f"{path}.output_tokens=True: captioning models are not supported; set it to False")
    kept = {k: text[k] for k in ("context_length", "hf_tokenizer_name") if k in text}
    return tower | poolings[pooler] | {"proj_type": proj} | kept


def timm_section(vision: VisionConfig) -> dict[str, Any]:
    """open_clip's ``vision_cfg`` of a tower that timm has by name; of another, one that no reader takes."""
    names = [f"vit_{size}_patch{vision.patch_size}_siglip_{vision.image_size}" for size in _SIGLIP_SIZES]
    for name in (*names, *_TIMM):
        pool = _TIMM[name][0] if name in _TIMM else "map"
        proj = "none" if name in names else None if vision.proj_bias else "linear"
        tower = timm_vision(name, pool=pool, proj=proj, proj_bias=False, path="")
        pixels = ("image_size", "image_mean", "image_std", "image_resize")
        default = VisionConfig()
        same = {f.name: getattr(default, f.name) for f in dataclasses.fields(VisionConfig)} | tower
        if all(getattr(vision, k) == v for k, v in same.items() if k not in pixels) and (
            name in names or vision.image_size == tower["image_size"]
        ):
            break
    else:
        name, pool, proj = "vit_of_another_size", "map", "none"
    return {
        "image_size": vision.image_size, "timm_model_name": name, "timm_model_pretrained": False, "timm_pool": pool,
        "timm_proj": proj,
    }  # fmt: skip


def hf_section(text: TextConfig) -> dict[str, Any]:
    """open_clip's ``text_cfg`` of a tower that transformers has by name; of another, one that no reader takes."""
    pooler = (
        "mean_pooler"
        if text.pool_type == "mean"
        else "cls_pooler"
        if text.pool_tanh
        else "cls_last_hidden_state_pooler"
    )
    free = ("eos_id", "pad_id")
    fits = (n for n, keys in _HF.items() if all(getattr(text, k) == v for k, v in keys.items() if k not in free))
    return {
        "hf_model_name": next(fits, "of_another_size"), "hf_model_pretrained": False, "hf_pooler_type": pooler,
        "hf_proj_type": None if text.proj_type == "none" else text.proj_type, "context_length": text.context_length,
    }  # fmt: skip
