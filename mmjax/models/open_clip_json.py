"""Reads open_clip's model files (``src/open_clip/model_configs/*.json`` there) into this project's model schema.

Most keys mean the same here and pass unchanged. ``quick_gelu`` and ``act_kwargs`` become ``activation``,
``norm_kwargs`` becomes ``ln_eps``, ``timm_*`` becomes the vision transformer of that name. A key that this project
does not implement is an error unless its value switches the feature off: the model would differ from the file's.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from mmjax.core.config import ConfigError, build
from mmjax.models.config import ClipConfig, TextConfig, VisionConfig

# For each key that is not implemented here, the values under which the file describes a supported model.
_UNSUPPORTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "": {"custom_text": (True, False), "output_dict": (True, False), "nonscalar_logit_scale": (True, False)},
    "vision_cfg": {
        "ls_init_value": (None,), "attentional_pool": (False,), "attn_pooler_queries": (256,),
        "attn_pooler_heads": (8,), "output_tokens": (False,), "block_type": (None, "default", "custom"),
        "scaled_cosine_attn": (False,), "scale_heads": (False,), "scale_attn_inner": (False,), "scale_attn": (False,),
        "scale_fc": (False,), "image_seq_len": (None,), "in_chans": (3,),
    },
    "text_cfg": {
        "text_arch": ("clip",), "variable_text": (False,), "tokenizer_mode": (None,), "ls_init_value": (None,),
        "embed_cls": (False,), "bos_id": (None,), "tokenizer_type": ("",), "output_tokens": (False,),
        "block_type": (None, "default", "custom"), "scaled_cosine_attn": (False,), "scale_heads": (False,),
        "scale_attn_inner": (False,), "scale_attn": (False,), "scale_fc": (False,), "hf_model_name": (None,),
    },
}  # fmt: skip

_TIMM_SIZES: dict[str, dict[str, Any]] = {
    "base": {"width": 768, "layers": 12, "head_width": 64},
    "large": {"width": 1024, "layers": 24, "head_width": 64},
    "so400m": {"width": 1152, "layers": 27, "head_width": 72, "mlp_ratio": 3.7362},
    "giantopt": {"width": 1536, "layers": 40, "head_width": 96},
}
_TIMM_UNSUPPORTED = {"timm_model_pretrained": (False,), "timm_drop": (0.0,), "timm_drop_path": (None, 0.0),
             "timm_model_kwargs": (None,), "timm_proj_bias": (False,)}  # fmt: skip


def read(path: str) -> ClipConfig:
    """The model of the JSON file at ``path``."""
    try:
        with open(path, encoding="utf-8") as file:
            section = json.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model={path!r}: not a readable JSON file ({error})") from error
    return convert(section, path=path)


def convert(section: Mapping[str, Any], *, path: str = "model") -> ClipConfig:
    """The model of open_clip's ``section``; error messages name ``path``.

    SigLIP's files (timm towers) get ``gelu_tanh`` in both towers: their weights were trained with it, although
    open_clip runs the first generation with exact GELU. A file with ``init_logit_bias`` starts from the scale ln 10
    unless it names another, as open_clip's trainer does for the sigmoid loss.
    """
    section = _mapping(section, path=path)
    vision, text = (_mapping(section.pop(k, {}), path=f"{path}.{k}") for k in ("vision_cfg", "text_cfg"))
    _drop(section, _UNSUPPORTED[""], path=path)
    quick = section.pop("quick_gelu", False)
    timm = "timm_model_name" in vision
    if timm and quick:
        raise ConfigError(f"{path}.quick_gelu=True: timm's towers do not use quick_gelu; set it to False")
    if timm:
        vision = _timm_vision(vision, path=f"{path}.vision_cfg")
    else:
        for key in [k for k in vision if k.startswith("timm_")]:
            _drop(vision, {key: _TIMM_UNSUPPORTED.get(key, ())}, path=f"{path}.vision_cfg")
        if isinstance(vision.get("layers"), (list, tuple)):
            raise ConfigError(f"{path}.vision_cfg.layers={vision['layers']}: a ResNet; use a vision transformer")
        _convert_kwargs(vision, quick=quick, path=f"{path}.vision_cfg")
    for key in [k for k in text if k.startswith("hf_") and k not in ("hf_tokenizer_name", "hf_model_name")]:
        if text.get("hf_model_name") is None:
            del text[key]  # options of a Hugging Face tower, which the file does not use
    _convert_kwargs(text, quick=quick, path=f"{path}.text_cfg")
    if timm:
        text["activation"] = "gelu_tanh"
    cleaning = dict(text.pop("tokenizer_kwargs", None) or {})
    text["tokenizer_clean"] = cleaning.pop("clean", None)
    if cleaning:
        raise ConfigError(
            f"{path}.text_cfg.tokenizer_kwargs={cleaning}: of a tokenizer's options only 'clean' is supported"
        )
    if dropout := vision.pop("patch_dropout", 0):
        raise ConfigError(
            f"{path}.vision_cfg.patch_dropout={dropout}: not a part of the model here; set it to 0 and train with "
            f'augment=(("patch_dropout", {{"drop_rate": {dropout}}}),)'
        )
    _drop(vision, _UNSUPPORTED["vision_cfg"], path=f"{path}.vision_cfg")
    _drop(text, _UNSUPPORTED["text_cfg"], path=f"{path}.text_cfg")
    if section.get("init_logit_bias") is not None:
        section.setdefault("init_logit_scale", math.log(10.0))
    defaults = dataclasses.asdict(ClipConfig())
    return build(
        ClipConfig,
        {
            **{k: v for k, v in defaults.items() if k not in ("vision_cfg", "text_cfg")},
            **section,
            "vision_cfg": build(VisionConfig, {"layers": 12, **vision}, path=f"{path}.vision_cfg"),
            "text_cfg": build(TextConfig, text, path=f"{path}.text_cfg"),
        },
        path=path,
    )


def _mapping(value: Any, *, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}={value!r}: expected a section (a mapping of keys)")
    return dict(value)


def _drop(section: dict[str, Any], unsupported: Mapping[str, tuple[Any, ...]], *, path: str) -> None:
    for key, allowed in unsupported.items():
        if key in section and (value := section.pop(key)) not in allowed:
            raise ConfigError(
                f"{path}.{key}={value!r}: this part of open_clip's models is not supported; "
                f"use a file with {' or '.join(map(repr, allowed)) or 'no such key'}"
            )


def _convert_kwargs(tower: dict[str, Any], *, quick: bool, path: str) -> None:
    """Turns the keyword arguments of torch's activation and norm layers into ``activation`` and ``ln_eps``."""
    activation = dict(tower.pop("act_kwargs", None) or {})
    norm = dict(tower.pop("norm_kwargs", None) or {})
    approximate = activation.pop("approximate", "none")
    if activation or approximate not in ("none", "tanh") or (quick and approximate == "tanh"):
        raise ConfigError(f"{path}.act_kwargs={activation or approximate!r}: only approximate='tanh' is supported")
    if norm.keys() - {"eps"}:
        raise ConfigError(f"{path}.norm_kwargs={norm}: only eps is supported")
    tower["activation"] = "quick_gelu" if quick else "gelu_tanh" if approximate == "tanh" else "gelu"
    if norm:
        tower["ln_eps"] = norm["eps"]


def _timm_vision(vision: dict[str, Any], *, path: str) -> dict[str, Any]:
    """A SigLIP tower of timm: no class token, no norm before the blocks, a patch bias, attention pooling."""
    name = vision.pop("timm_model_name")
    match = re.fullmatch(rf"vit_({'|'.join(_TIMM_SIZES)})_patch(\d+)_siglip_(\d+)", str(name))
    if match is None:
        raise ConfigError(
            f"{path}.timm_model_name={name!r}: of timm's models only vit_SIZE_patchN_siglip_N are supported"
        )
    for key, wanted in (("timm_pool", "map"), ("timm_proj", "none")):
        if (value := vision.pop(key, None)) not in (wanted, None if key == "timm_proj" else wanted):
            raise ConfigError(f"{path}.{key}={value!r}: only {wanted!r} is supported with {name}")
    _drop(vision, _TIMM_UNSUPPORTED, path=path)
    size, patch, image = match.groups()
    half = (0.5, 0.5, 0.5)
    return {
        "image_size": int(image), **vision, **_TIMM_SIZES[size], "patch_size": int(patch), "class_token": False,
        "no_ln_pre": True, "patch_bias": True, "pool_type": "map", "proj_type": "none", "activation": "gelu_tanh",
        "ln_eps": 1e-6, "image_mean": half, "image_std": half, "image_resize": "squash",
    }  # fmt: skip


def siglip_name(vision: VisionConfig) -> str | None:
    """timm's name of a SigLIP tower, if it has one of its sizes."""
    for size, keys in _TIMM_SIZES.items():
        sizes = {key: getattr(vision, key) for key in keys}
        if sizes == keys and keys.get("mlp_ratio", 4.0) == vision.mlp_ratio:
            return f"vit_{size}_patch{vision.patch_size}_siglip_{vision.image_size}"
    return None
