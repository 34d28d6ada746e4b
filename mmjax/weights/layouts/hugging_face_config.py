"""``config.json`` and ``preprocessor_config.json`` of transformers' CLIP and SigLIP, to our model schema and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mmjax.core.config import ConfigError, build
from mmjax.models.config import ClipConfig, TextConfig, VisionConfig
from mmjax.weights.layouts.plain import uncommon_options

_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}

_CLIP_DEFAULTS = {
    "text_config": {
        "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
        "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        "eos_token_id": 49407,
    },
    "vision_config": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
}  # fmt: skip
_SIGLIP_DEFAULTS = {
    "text_config": {
        "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 64, "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    "vision_config": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_channels": 3, "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6, "vision_use_head": True,
    },
}  # fmt: skip
"""What transformers takes for keys that a file leaves out."""

_GEMMA_TOKENS = 256_000

MODEL_TYPES = {
    "clip": "clip", "clip_vision_model": "clip", "clip_text_model": "clip",
    "siglip": "siglip", "siglip_vision_model": "siglip", "siglip_text_model": "siglip",
    "bert": "bert", "distilbert": "bert", "roberta": "bert", "xlm-roberta": "bert",
}  # fmt: skip
"""Values of ``model_type``, of models and of single towers, and the family of each."""


def read_config(section: Mapping[str, Any], *, path: str) -> ClipConfig:
    """The model of a ``config.json``; of a single tower's, the other tower has transformers' default sizes."""
    family = MODEL_TYPES[section["model_type"]]
    if family == "bert":
        return read_bert(section, path=path)
    defaults = _CLIP_DEFAULTS if family == "clip" else _SIGLIP_DEFAULTS
    towers = {name: {**values, **_tower(section, name, path)} for name, values in defaults.items()}
    text, vision = towers["text_config"], towers["vision_config"]
    options = _clip_options(section, text) if family == "clip" else _siglip_options(text, vision)
    for name, tower in towers.items():
        if tower["hidden_act"] not in _ACTIVATIONS:
            raise ConfigError(
                f"{path}: {name}.hidden_act={tower['hidden_act']!r} is not supported; known: {', '.join(_ACTIVATIONS)}"
            )
    if vision["num_channels"] != 3:
        raise ConfigError(f"{path}: vision_config.num_channels={vision['num_channels']!r}: only 3 are supported")
    return build(
        ClipConfig,
        {
            **{k: v for k, v in dataclasses.asdict(ClipConfig()).items() if not k.endswith("_cfg")},
            **options["model"],
            "vision_cfg": build(
                VisionConfig,
                {
                    **_common(vision),
                    "image_size": vision["image_size"],
                    "patch_size": vision["patch_size"],
                    "head_width": vision["hidden_size"] // vision["num_attention_heads"],
                    **options["vision_cfg"],
                },
                path=f"{path}: vision_config",
            ),
            "text_cfg": build(
                TextConfig,
                {
                    **_common(text),
                    "heads": text["num_attention_heads"],
                    "context_length": text["max_position_embeddings"],
                    "vocab_size": text["vocab_size"],
                    **options["text_cfg"],
                },
                path=f"{path}: text_config",
            ),
        },
        path=path,
    )


_BERT_DEFAULTS = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
    "vocab_size": 30522, "pad_token_id": 0,
}  # fmt: skip
_DISTILBERT_NAMES = {"dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
                     "hidden_dim": "intermediate_size", "activation": "hidden_act"}  # fmt: skip


def read_bert(section: Mapping[str, Any], *, path: str) -> ClipConfig:
    """BERT or a relative as the text tower; it takes the first token, RoBERTa's the mean, as open_clip does."""
    kind = section["model_type"]
    distilbert, roberta = kind == "distilbert", "roberta" in kind
    keys: dict[str, Any] = _BERT_DEFAULTS | {"pad_token_id": int(roberta)}
    keys |= {_DISTILBERT_NAMES.get(key, key) if distilbert else key: value for key, value in section.items()}
    if keys["hidden_act"] not in _ACTIVATIONS or keys.get("position_embedding_type", "absolute") != "absolute":
        raise ConfigError(
            f"{path}: hidden_act={keys['hidden_act']!r}, position_embedding_type="
            f"{keys.get('position_embedding_type', 'absolute')!r}: only absolute positions and one of "
            f"{', '.join(_ACTIVATIONS)} are supported"
        )
    text = {
        **_common(keys), "heads": keys["num_attention_heads"], "vocab_size": keys["vocab_size"],
        "context_length": min(77, keys["max_position_embeddings"] - (keys["pad_token_id"] + 1) * roberta),
        "num_positions": keys["max_position_embeddings"], "positions_from_pad": roberta,
        "token_types": 0 if distilbert else keys["type_vocab_size"], "pad_id": keys["pad_token_id"],
        "block_norm": "post", "embed_norm": True, "no_causal_mask": True, "mask_padding": True,
        "pool_type": "mean" if roberta else "first",
    }  # fmt: skip
    return ClipConfig(text_cfg=build(TextConfig, text, path=path))


def _tower(section: Mapping[str, Any], name: str, path: str) -> dict[str, Any]:
    """A tower's keys: a section of its own, or the file itself. What old files repeat as ``*_dict`` counts more."""
    if section["model_type"] in ("clip", "siglip"):
        merged: dict[str, Any] = {}
        for key in (name, f"{name}_dict"):
            if not isinstance(keys := section.get(key) or {}, Mapping):
                raise ConfigError(f"{path}: {key}={keys!r}: expected a section of keys")
            merged |= keys
        return merged
    return dict(section) if name.split("_")[0] in section["model_type"] else {}


def _clip_options(section: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    eos = text["eos_token_id"]
    # The first CLIP files name 2 by mistake; there transformers takes the token of the highest id, as CLIP does.
    pooled = "argmax" if eos in (2, text["vocab_size"] - 1) else "eos"
    return {
        "model": {
            "embed_dim": section.get("projection_dim", 512),
            "init_logit_scale": section.get("logit_scale_init_value", math.log(1 / 0.07)),
        },
        "vision_cfg": {},
        "text_cfg": {"pool_type": pooled, "eos_id": eos if pooled == "eos" else None},
    }


def _siglip_options(text: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    width, half = text.get("projection_size") or text["hidden_size"], (0.5, 0.5, 0.5)
    if not vision["vision_use_head"]:
        raise ConfigError(
            "vision_config.vision_use_head=False: a SigLIP tower without its attention pooling embeds nothing"
        )
    return {
        "model": {"embed_dim": width, "init_logit_scale": math.log(10.0), "init_logit_bias": -10.0},
        "vision_cfg": {
            "class_token": False, "no_ln_pre": True, "patch_bias": True, "pool_type": "map", "proj_type": "none",
            "image_mean": half, "image_std": half, "image_resize": "squash",
        },
        "text_cfg": {
            "no_causal_mask": True, "pool_type": "last", "proj_bias": True,
            "tokenizer_clean": siglip_cleaning(text["vocab_size"]),
        },
    }  # fmt: skip


def siglip_cleaning(vocab_size: int) -> str:
    """How texts were cleaned in training: SigLIP 2 has Gemma's tokens and keeps punctuation (transformers#43101)."""
    return "lower" if vocab_size == _GEMMA_TOKENS else "canonicalize"


def _common(tower: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "width": tower["hidden_size"],
        "layers": tower["num_hidden_layers"],
        "mlp_ratio": mlp_ratio(tower["intermediate_size"], tower["hidden_size"]),
        "activation": _ACTIVATIONS.get(tower["hidden_act"], "gelu"),
        "ln_eps": tower["layer_norm_eps"],
    }


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio of which ``int(width * ratio)`` is ``hidden``."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def write_config(config: ClipConfig) -> dict[str, Any]:
    """The ``config.json`` of a model; raises ConfigError with the keys that neither class can express."""
    family = "siglip" if config.vision_cfg.pool_type == "map" else "clip"
    vision, text = config.vision_cfg, config.text_cfg
    refused = _unsupported(config, family)
    if refused:
        name = {"clip": "CLIPModel", "siglip": "SiglipModel"}[family]
        raise ConfigError(
            f"--format=hf: transformers' {name} cannot express {', '.join(refused)}; use --format=stablehlo"
        )
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    both = {
        name: {
            "hidden_size": tower.width,
            "intermediate_size": int(tower.width * tower.mlp_ratio),
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "hidden_act": names[tower.activation],
            "layer_norm_eps": tower.ln_eps,
        }
        for name, tower in (("text_config", text), ("vision_config", vision))
    }
    both["vision_config"] |= {
        "model_type": f"{family}_vision_model", "image_size": vision.image_size, "patch_size": vision.patch_size,
        "num_channels": 3,
    }  # fmt: skip
    both["text_config"] |= {
        "model_type": f"{family}_text_model", "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length, "eos_token_id": text.eos_id, "pad_token_id": text.pad_id,
        "bos_token_id": None,
    }  # fmt: skip
    if family == "clip":
        # A highest id of the end token is what transformers' old value 2 asks for.
        both["text_config"]["eos_token_id"] = 2 if text.pool_type == "argmax" else text.eos_id
        for tower in both.values():
            tower["projection_dim"] = config.embed_dim
        own: dict[str, Any] = {
            "projection_dim": config.embed_dim,
            "logit_scale_init_value": config.init_logit_scale,
        }
    else:
        both["text_config"]["projection_size"] = config.embed_dim
        own = {}
    return {
        "model_type": family,
        "architectures": [{"clip": "CLIPModel", "siglip": "SiglipModel"}[family]],
        "dtype": "float32",
        **own,
        **both,
    }


def _unsupported(config: ClipConfig, family: str) -> list[str]:
    vision, text = config.vision_cfg, config.text_cfg
    siglip = family == "siglip"
    wanted: dict[str, tuple[Any, Any]] = {
        "vision_cfg.stem": (vision.stem, "patch"),
        "vision_cfg.qk_norm": (vision.qk_norm, False),
        "vision_cfg.pos_embed_type": (vision.pos_embed_type, "learnable"),
        "vision_cfg.class_token": (vision.class_token, not siglip),
        "vision_cfg.registers": (vision.registers, 0),
        "vision_cfg.no_ln_pre": (vision.no_ln_pre, siglip),
        "vision_cfg.patch_bias": (vision.patch_bias, siglip),
        "vision_cfg.pool_type": (vision.pool_type, "map" if siglip else "tok"),
        "vision_cfg.proj_type": (vision.proj_type, "none" if siglip else "linear"),
        "vision_cfg.proj_bias": (vision.proj_bias, False),
        "vision_cfg.modalities": (len(vision.modalities), 1),
        "vision_cfg.modality_channels": (vision.modality_channels, (3,)),
        "text_cfg.qk_norm": (text.qk_norm, False),
        "text_cfg.no_causal_mask": (text.no_causal_mask, siglip),
        "text_cfg.proj_type": (text.proj_type, "linear"),
        "text_cfg.proj_bias": (text.proj_bias, siglip),
        "text_cfg.final_ln_after_pool": (text.final_ln_after_pool, False),
        "init_logit_bias": (config.init_logit_bias is not None, siglip),
    }
    refused = [f"model.{key}={value!r}" for key, (value, expressible) in wanted.items() if value != expressible]
    refused += uncommon_options(config)
    if not siglip and text.pool_type == "eos" and text.eos_id == 2:
        refused.append("model.text_cfg.eos_id=2 (which it takes for the token of the highest id)")
    pooled = ("last",) if siglip else ("argmax", "eos")
    if text.pool_type not in pooled:
        refused.append(f"model.text_cfg.pool_type={text.pool_type!r}")
    return refused


def read_preprocessor(section: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``vision_cfg`` that a ``preprocessor_config.json`` decides."""
    keys: dict[str, Any] = {}
    if section.get("do_normalize", True):
        for theirs, ours in (("image_mean", "image_mean"), ("image_std", "image_std")):
            if section.get(theirs) is not None:
                keys[ours] = tuple(float(x) for x in section[theirs])
    size = section.get("size")
    if isinstance(size, Mapping):
        keys["image_resize"] = "shortest" if "shortest_edge" in size else "squash"
    elif isinstance(size, int):
        keys["image_resize"] = "shortest"
    return keys


def write_preprocessor(config: ClipConfig) -> dict[str, Any]:
    """The ``preprocessor_config.json`` that does what evaluation does here; raises where no processor can."""
    vision = config.vision_cfg
    side = {"height": vision.image_size, "width": vision.image_size}
    common = {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": list(vision.image_mean), "image_std": list(vision.image_std), "resample": 3,
        "rescale_factor": 1 / 255,
    }  # fmt: skip
    if vision.image_resize == "squash":
        return common | {"image_processor_type": "SiglipImageProcessor", "size": side}
    if vision.image_resize == "longest":
        raise ConfigError(
            "model.vision_cfg.image_resize='longest': no processor of transformers does it; use 'shortest' or 'squash'"
        )
    return common | {
        "image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "crop_size": side,
        "size": {"shortest_edge": vision.image_size},
    }  # fmt: skip
