"""Our model schema as open_clip's ``model_cfg``."""

from __future__ import annotations

import dataclasses
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.models import named_towers, open_clip_json
from mmjax.models.config import ClipConfig, TextConfig, VisionConfig
from mmjax.weights.layouts.open_clip import uses_timm, uses_transformers

_VISION_KEYS = ("image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio")
_TEXT_KEYS = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")
_BLOCKS = ("ls_init_value", "scale_attn_inner", "scale_fc")
_OPTIONAL: dict[
    str, tuple[str, ...]
] = {  # keys of open_clip's towers that are written where they differ from its defaults, which are ours
    "vision_cfg": (
        "no_ln_pre",
        "pos_embed_type",
        "final_ln_after_pool",
        "pool_type",
        "attn_pooler_queries",
        "attn_pooler_heads",
        *_BLOCKS,
    ),
    "text_cfg": (
        "no_causal_mask",
        "pool_type",
        "proj_bias",
        "pad_id",
        "eos_id",
        "embed_cls",
        "correct_cls_mask",
        *_BLOCKS,
    ),
}


def write_model_cfg(config: ClipConfig, *, has_tokenizer: bool) -> dict[str, Any]:
    """The ``model_cfg`` of ``open_clip_config.json``.

    Raises ConfigError if open_clip would build another model of it, with the keys that it cannot express.
    """
    section: dict[str, Any] = {"embed_dim": config.embed_dim}
    if config.vision_cfg.activation == config.text_cfg.activation == "quick_gelu":
        section["quick_gelu"] = True
    custom = uses_timm(config) or uses_transformers(config)
    section["vision_cfg"] = _image_tower(config)
    section["text_cfg"] = (
        named_towers.hf_section(config.text_cfg) if uses_transformers(config) else _tower(config.text_cfg, _TEXT_KEYS)
    )
    if config.decoder is not None:
        section["multimodal_cfg"] = _decoder(config)
        section["vision_cfg"] |= {"attentional_pool": True, "output_tokens": True}
        section["text_cfg"]["output_tokens"] = custom = True
    if custom or config.init_logit_bias is not None:
        section |= {"custom_text": True, "init_logit_bias": config.init_logit_bias}
    section["init_logit_scale"] = config.init_logit_scale
    if has_tokenizer:
        section["text_cfg"]["hf_tokenizer_name"] = "."  # open_clip takes the tokenizer of the folder itself
    options = {"clean": config.text_cfg.tokenizer_clean, "strip_sep_token": config.text_cfg.tokenizer_strip_sep}
    if options := {key: value for key, value in options.items() if value}:
        section["text_cfg"]["tokenizer_kwargs"] = options
    _check(section, config)
    return section


def _decoder(config: ClipConfig) -> dict[str, Any]:
    assert config.decoder is not None
    sizes = {key: getattr(config.decoder, key) for key in ("width", "heads", "layers")}
    scale = {} if config.decoder.ls_init_value is None else {"ls_init_value": config.decoder.ls_init_value}
    text = config.text_cfg
    return sizes | scale | {"context_length": text.context_length, "vocab_size": text.vocab_size}


def _tower(tower: VisionConfig | TextConfig, keys: tuple[str, ...]) -> dict[str, Any]:
    kind = "vision_cfg" if isinstance(tower, VisionConfig) else "text_cfg"
    written = {key: getattr(tower, key) for key in keys}
    defaults = type(tower)()
    for key in _OPTIONAL[kind]:
        if getattr(tower, key) not in (getattr(defaults, key), None):
            written[key] = getattr(tower, key)
    if tower.activation == "gelu_tanh":
        written["act_kwargs"] = {"approximate": "tanh"}
    if tower.ln_eps != defaults.ln_eps:
        written["norm_kwargs"] = {"eps": tower.ln_eps}
    return written


def _image_tower(config: ClipConfig) -> dict[str, Any]:
    vision = config.vision_cfg
    if vision.stem == "resnet":
        first = {"layers": list(vision.stem_layers), "width": vision.stem_widths[0], "patch_size": None}
        return {"image_size": vision.image_size, "head_width": vision.head_width, **first}
    return named_towers.timm_section(vision) if uses_timm(config) else _tower(vision, _VISION_KEYS)


def _check(section: dict[str, Any], config: ClipConfig) -> None:
    """Reads the section back: what open_clip makes of it must be this very model."""
    wanted = dataclasses.asdict(config)
    try:
        back = dataclasses.asdict(open_clip_json.convert(section, path="model"))
    except ConfigError as error:
        raise ConfigError(f"--format=open_clip: open_clip cannot express this model: {error}") from None
    differences = [
        f"model.{kind}.{key}={value!r}"
        for kind in ("vision_cfg", "text_cfg", *(["decoder"] if wanted["decoder"] else []))
        for key, value in wanted[kind].items()
        if key not in _NOT_THE_MODEL and back[kind][key] != value
    ]
    if differences:
        raise ConfigError(f"--format=open_clip: open_clip cannot express {', '.join(differences)}")


_NOT_THE_MODEL = {
    "image_mean", "image_std", "image_resize", "token_init_sd", "position_init_sd", "hf_tokenizer_name",
    "tokenizer_clean", "tokenizer_strip_sep", "pad_id", "eos_id", "modality_channels",
}  # fmt: skip
