"""Reads open_clip's model files (``src/open_clip/model_configs/*.json`` there) into this project's model schema.

Most keys mean the same here and pass unchanged. ``quick_gelu`` and ``act_kwargs`` become ``activation``,
``norm_kwargs`` becomes ``ln_eps``, ``timm_*`` and ``hf_*`` become the tower of that name (``named_towers``). A key that
this project does not implement is an error unless its value switches the feature off: the model would differ from the
file's.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from mmjax.core.config import ConfigError, build
from mmjax.models.config import ClipConfig, TextConfig, VisionConfig
from mmjax.models.named_towers import hf_text, timm_vision

# For each key that is not implemented here, the values under which the file describes a supported model.
_UNSUPPORTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "": {"custom_text": (True, False), "output_dict": (True, False), "nonscalar_logit_scale": (True, False)},
    "vision_cfg": {
        "output_tokens": (False, True), "block_type": (None, "default", "custom"),
        "scaled_cosine_attn": (False,), "scale_heads": (False,), "scale_attn": (False,), "image_seq_len": (None,),
        "in_chans": (3,),
    },
    "text_cfg": {
        "text_arch": ("clip",), "variable_text": (False,), "tokenizer_mode": (None,),
        "bos_id": (None,), "tokenizer_type": ("",), "output_tokens": (False, True),
        "block_type": (None, "default", "custom"), "scaled_cosine_attn": (False,), "scale_heads": (False,),
        "scale_attn": (False,),
    },
    "multimodal_cfg": {"mlp_ratio": (4, 4.0)},
}  # fmt: skip

# timm's options that change training alone, or nothing at these values.
_TIMM_UNSUPPORTED = {"timm_model_pretrained": (False,), "timm_drop": (0.0,), "timm_model_kwargs": (None,)}
_IMAGENET_PIXELS = {
    "image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225), "image_resize": "squash",
}  # fmt: skip
_LOG = logging.getLogger(__name__)


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

    How pixels are normalized stands with open_clip's weights and not in these files; it is taken from the family:
    CLIPA's (which strip a separator), SigLIP's, MobileCLIP's and PE-Core's differ from CLIP's.
    """
    section = _mapping(section, path=path)
    vision, text = (_mapping(section.pop(k, {}), path=f"{path}.{k}") for k in ("vision_cfg", "text_cfg"))
    decoder = section.pop("multimodal_cfg", None)
    _drop(section, _UNSUPPORTED[""], path=path)
    quick = section.pop("quick_gelu", False)
    named = vision.pop("timm_model_name", None)
    if named is not None:
        if quick:
            raise ConfigError(f"{path}.quick_gelu=True: timm's towers do not use quick_gelu; set it to False")
        vision = _timm(vision, str(named), path=f"{path}.vision_cfg")
    else:
        _drop(
            vision,
            {k: _TIMM_UNSUPPORTED.get(k, ()) for k in vision if k.startswith("timm_")},
            path=f"{path}.vision_cfg",
        )
        _convert_kwargs(vision, quick=quick, path=f"{path}.vision_cfg")
        if isinstance(vision.get("layers"), (list, tuple)):
            vision = _resnet(vision, path=f"{path}.vision_cfg")
    tokenizer = dict(text.pop("tokenizer_kwargs", None) or {})
    if text.get("hf_model_name") is not None:
        text = hf_text(text, embed_dim=section.get("embed_dim"), path=f"{path}.text_cfg")
    else:
        text = {k: v for k, v in text.items() if not k.startswith("hf_") or k == "hf_tokenizer_name"}
        _convert_kwargs(text, quick=quick, path=f"{path}.text_cfg")
    if named is not None and "siglip" in str(named):
        text["activation"] = "gelu_tanh"
    # By default open_clip cleans so before tokenizers of transformers.
    text["tokenizer_clean"] = tokenizer.pop("clean", "whitespace" if text.get("hf_tokenizer_name") else None)
    text["tokenizer_strip_sep"] = tokenizer.pop("strip_sep_token", False)
    if tokenizer:
        raise ConfigError(
            f"{path}.text_cfg.tokenizer_kwargs={tokenizer}: of a tokenizer's options only 'clean' and "
            "'strip_sep_token' are supported"
        )
    if text["tokenizer_strip_sep"]:
        vision = _IMAGENET_PIXELS | vision
    if dropout := vision.pop("patch_dropout", 0):
        raise ConfigError(
            f"{path}.vision_cfg.patch_dropout={dropout}: not a part of the model here; set it to 0 and train with "
            f'augment=(("patch_dropout", {{"drop_rate": {dropout}}}),)'
        )
    _drop(vision, _UNSUPPORTED["vision_cfg"], path=f"{path}.vision_cfg")
    _drop(text, _UNSUPPORTED["text_cfg"], path=f"{path}.text_cfg")
    if decoder is not None:
        section["decoder"] = _decoder(_mapping(decoder, path=f"{path}.multimodal_cfg"), vision, text, quick, path=path)
    if "attentional_pool" in vision:
        vision["attentional_pool"] = {True: "shared", False: "none"}.get(
            vision["attentional_pool"], vision["attentional_pool"]
        )
    if text.get("embed_cls"):
        text = {"pad_id": 0, **text, "final_ln_after_pool": True}
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


def _decoder(
    section: dict[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any], quick: bool, *, path: str
) -> dict[str, Any]:
    """CoCa's decoder: on the text tower's tokens, with cross-attention to those of attentional pooling."""
    where = f"{path}.multimodal_cfg"
    if not vision.get("attentional_pool"):
        raise ConfigError(f"{where}: without vision_cfg.attentional_pool the decoder of open_clip is not supported")
    for key in ("context_length", "vocab_size"):
        if section.pop(key, text.get(key)) != text.get(key):
            raise ConfigError(f"{where}.{key}: must be that of text_cfg, {text.get(key)}")
    _drop(section, _UNSUPPORTED["multimodal_cfg"], path=where)
    used = {key: value for key, value in section.items() if key not in ("dim_head", "n_queries", "attn_pooler_heads")}
    return {"activation": "quick_gelu" if quick else "gelu", **used}  # open_clip reads those three nowhere


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


def _timm(vision: dict[str, Any], name: str, *, path: str) -> dict[str, Any]:
    """The tower of timm ``name`` with what the file sets beside it."""
    drop_path = vision.pop("timm_drop_path", None)
    _drop(vision, _TIMM_UNSUPPORTED, path=path)
    options = {k: vision.pop(f"timm_{k}", default) for k, default in (("pool", "avg"), ("proj", "linear"))}
    tower = timm_vision(name, **options, proj_bias=vision.pop("timm_proj_bias", False), path=path)
    if drop_path:
        _LOG.warning(f"{path}.timm_drop_path={drop_path}: training here drops no layers; embeddings are the same")
    return vision | tower | {"image_size": vision.get("image_size", tower["image_size"])}


def _resnet(vision: dict[str, Any], *, path: str) -> dict[str, Any]:
    """CLIP's ResNet: ``layers`` counts the bottlenecks of four stages, ``width`` is that of the first."""
    first, layers = vision.pop("width", 768), tuple(vision.pop("layers"))
    if vision.pop("patch_size", None) not in (None, 32):
        raise ConfigError(f"{path}.patch_size: a ResNet has none; set it to None")
    return vision | {
        "stem": "resnet", "stem_widths": (first,), "stem_layers": layers, "width": 32 * first, "layers": 0,
        "patch_size": 32, "no_ln_pre": True, "pool_type": "attn", "proj_bias": True, "activation": "gelu",
    }  # fmt: skip
