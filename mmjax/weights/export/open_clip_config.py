"""Our model schema as open_clip's ``model_cfg``."""

from __future__ import annotations

import dataclasses
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.models import named_towers, open_clip_json
from mmjax.models.config import ClipConfig, TextConfig, VisionConfig
from mmjax.weights.layouts.open_clip import uses_timm

_VISION_KEYS = ("image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio")
_TEXT_KEYS = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")
_OPTIONAL = {  # keys of open_clip's towers that are written where they differ from its defaults, which are ours
    "vision_cfg": ("no_ln_pre", "pos_embed_type", "final_ln_after_pool", "pool_type"),
    "text_cfg": ("no_causal_mask", "pool_type", "proj_bias", "pad_id", "eos_id"),
}


def write_model_cfg(config: ClipConfig, *, has_tokenizer: bool) -> dict[str, Any]:
    """The ``model_cfg`` of ``open_clip_config.json``.

    Raises ConfigError if open_clip would build another model of it, with the keys that it cannot express.
    """
    section: dict[str, Any] = {"embed_dim": config.embed_dim}
    if config.vision_cfg.activation == config.text_cfg.activation == "quick_gelu":
        section["quick_gelu"] = True
    section["vision_cfg"] = _timm_tower(config) if uses_timm(config) else _tower(config.vision_cfg, _VISION_KEYS)
    section["text_cfg"] = _tower(config.text_cfg, _TEXT_KEYS)
    if uses_timm(config) or config.init_logit_bias is not None:
        section |= {"custom_text": True, "init_logit_bias": config.init_logit_bias}
    section["init_logit_scale"] = config.init_logit_scale
    if has_tokenizer:
        section["text_cfg"]["hf_tokenizer_name"] = "."  # open_clip takes the tokenizer of the folder itself
    if config.text_cfg.tokenizer_clean:
        section["text_cfg"]["tokenizer_kwargs"] = {"clean": config.text_cfg.tokenizer_clean}
    _check(section, config)
    return section


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


def _timm_tower(config: ClipConfig) -> dict[str, Any]:
    vision = config.vision_cfg
    return {
        "image_size": vision.image_size,
        "timm_model_name": named_towers.siglip_name(vision) or "vit_of_another_size",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }


def _check(section: dict[str, Any], config: ClipConfig) -> None:
    """Reads the section back: what open_clip makes of it must be this very model."""
    wanted = dataclasses.asdict(config)
    try:
        back = dataclasses.asdict(open_clip_json.convert(section, path="model"))
    except ConfigError as error:
        raise ConfigError(f"--format=open_clip: open_clip cannot express this model: {error}") from None
    differences = [
        f"model.{kind}.{key}={value!r}"
        for kind in ("vision_cfg", "text_cfg")
        for key, value in wanted[kind].items()
        if key not in _NOT_THE_MODEL and back[kind][key] != value
    ]
    if differences:
        raise ConfigError(f"--format=open_clip: open_clip cannot express {', '.join(differences)}")


_NOT_THE_MODEL = {
    "image_mean", "image_std", "image_resize", "token_init_sd", "position_init_sd", "hf_tokenizer_name",
    "tokenizer_clean", "pad_id", "eos_id", "modality_channels",
}  # fmt: skip
