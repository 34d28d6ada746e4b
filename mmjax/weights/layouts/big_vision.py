"""big_vision's names in ``.npz`` files (SigLIP, LiT), and those of the image towers of "augreg".

Arrays have the same axes as ours. Old files add position embeddings after the class token is put before the patches,
new ones before; ours is the old way, which can express both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError, build
from mmjax.models.config import ClipConfig, TextConfig, VisionConfig
from mmjax.weights.layouts.hugging_face_config import mlp_ratio, siglip_cleaning
from mmjax.weights.layouts.plain import uncommon_options
from mmjax.weights.pretrained import Pretrained, RenamedFile, strip_prefixes
from mmjax.weights.rules import FLAT, SAME, Op, Rule, leading
from mmjax.weights.tensors import TensorFile, WeightsError, one_line_errors

_AUGREG = {"LayerNorm_1": "LayerNorm_2", "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
           "MlpBlock_0": "MlpBlock_3"}  # fmt: skip
_MOST_LAYERS = 1000


def rules(config: ClipConfig) -> Iterator[Rule]:
    """The rules of both towers; blocks are single ``encoderblock_N``, never stacked."""
    vision, text = config.vision_cfg, config.text_cfg
    yield from _image_tower(config, prefix="img/", blocks="Transformer/encoderblock_{layer}")
    if vision.pool_type == "map":
        yield Rule(("visual/map_head/probe",), "img/MAPHead_0/probe", leading(2))
        yield from _attention("visual/map_head/attn", "img/MAPHead_0/MultiHeadDotProductAttention_0")
        yield from _norm("visual/map_head/ln", "img/MAPHead_0/LayerNorm_0")
        yield from _mlp("visual/map_head/mlp", "img/MAPHead_0/MlpBlock_0")
    if vision.proj_type == "linear":
        yield from _dense("visual/proj", "img/head", bias=vision.proj_bias)
    yield Rule(("text/token_embed/embedding",), "txt/Embed_0/embedding", SAME)
    yield Rule(("text/pos_embed",), "txt/pos_embedding", leading(1))
    yield from _block("text/blocks", "txt/Encoder_0/encoderblock_{layer}")
    yield from _norm("text/ln_final", "txt/Encoder_0/encoder_norm")
    if text.proj_type == "linear":
        yield from _dense("text/proj", "txt/head", bias=text.proj_bias)
    yield Rule(("logit_scale",), "t", FLAT)
    if config.init_logit_bias is not None:
        yield Rule(("logit_bias",), "b", FLAT)


def augreg_rules(config: ClipConfig) -> Iterator[Rule]:
    """The rules of an image tower alone, of ``gs://vit_models/augreg``; its classifier is left out."""
    positions = "Transformer/posembed_input/pos_embedding"
    for rule in _image_tower(config, prefix="", blocks="Transformer/encoderblock_{layer}", positions=positions):
        theirs = "/".join(_AUGREG.get(part, part) for part in rule.theirs.split("/"))
        yield rule._replace(theirs=theirs)


def _read_positions(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Tables of new files have no row for the class token, to which nothing is added."""
    return np.pad(table[0], ((shape[0] - table.shape[1], 0), (0, 0)))


_POSITIONS = Op(_read_positions, leading(1).write)


def _image_tower(config: ClipConfig, *, prefix: str, blocks: str, positions: str = "pos_embedding") -> Iterator[Rule]:
    yield from _dense("visual/patch_embed", f"{prefix}embedding")
    if config.vision_cfg.class_token:
        yield Rule(("visual/cls",), f"{prefix}cls", leading(2))
    yield Rule(("visual/pos_embed",), f"{prefix}{positions}", _POSITIONS)
    yield from _block("visual/blocks", f"{prefix}{blocks}")
    yield from _norm("visual/ln_post", f"{prefix}Transformer/encoder_norm")


def _block(ours: str, theirs: str) -> Iterator[Rule]:
    yield from _norm(f"{ours}/ln_1", f"{theirs}/LayerNorm_0")
    yield from _attention(f"{ours}/attn", f"{theirs}/MultiHeadDotProductAttention_0")
    yield from _norm(f"{ours}/ln_2", f"{theirs}/LayerNorm_1")
    yield from _mlp(f"{ours}/mlp", f"{theirs}/MlpBlock_0")


def _attention(ours: str, theirs: str) -> Iterator[Rule]:
    for name in ("query", "key", "value", "out"):
        yield from _dense(f"{ours}/{name}", f"{theirs}/{name}")


def _mlp(ours: str, theirs: str) -> Iterator[Rule]:
    yield from _dense(f"{ours}/fc1", f"{theirs}/Dense_0")
    yield from _dense(f"{ours}/fc2", f"{theirs}/Dense_1")


def _norm(ours: str, theirs: str) -> Iterator[Rule]:
    for name in ("scale", "bias"):
        yield Rule((f"{ours}/{name}",), f"{theirs}/{name}", SAME)


def _dense(ours: str, theirs: str, *, bias: bool = True) -> Iterator[Rule]:
    yield Rule((f"{ours}/kernel",), f"{theirs}/kernel", SAME)
    if bias:
        yield Rule((f"{ours}/bias",), f"{theirs}/bias", SAME)


def recognizes(file: TensorFile) -> bool:
    """Whether the file is one of big_vision or augreg."""
    return any("Transformer/encoderblock" in name for name in file.tensors)


def open_file(file: TensorFile, spec: str) -> Pretrained:
    """The model of a file, whose sizes are those of its arrays."""
    with one_line_errors(file.path):  # arrays of other shapes than a model's make almost any error
        file = _one_array_a_block(strip_prefixes(file, ("params/", "opt/target/")))
        try:
            if any(name.startswith("img/") for name in file.tensors):
                config = _read_sizes(file)
                return Pretrained(spec=spec, config=config, file=file, rules=tuple(rules(config)))
            vision = _vision_sizes(file, "", positions="Transformer/posembed_input/pos_embedding")
            config = ClipConfig(vision_cfg=vision)
            return Pretrained(spec=spec, config=config, file=file, rules=tuple(augreg_rules(config)))
        except KeyError as error:
            raise WeightsError(f"{file.path}: has no array {error}, which models of big_vision have") from None


def _one_array_a_block(file: TensorFile) -> TensorFile:
    """Blocks that big_vision scanned over lie in one array, ``encoderblock``."""
    names: dict[str, tuple[str, int | None]] = {}
    for name, info in file.tensors.items():
        if "/encoderblock/" in name:
            if info.shape[0] > _MOST_LAYERS:
                raise WeightsError(f"{file.path}: {name!r} claims {info.shape[0]} blocks; not opened")
            for layer in range(info.shape[0]):
                names[name.replace("/encoderblock/", f"/encoderblock_{layer}/")] = (name, layer)
        else:
            names[name] = (name, None)
    return RenamedFile(file, names)


def _read_sizes(file: TensorFile) -> ClipConfig:
    shapes = {name: info.shape for name, info in file.tensors.items()}
    vision = _vision_sizes(file, "img/", positions="img/pos_embedding")
    vocab_size, width = shapes["txt/Embed_0/embedding"]
    block = "txt/Encoder_0/encoderblock_0"
    has_head = "txt/head/kernel" in shapes
    text = build(
        TextConfig,
        {
            "context_length": shapes["txt/pos_embedding"][-2], "vocab_size": vocab_size, "no_causal_mask": True,
            "heads": shapes[f"{block}/MultiHeadDotProductAttention_0/query/kernel"][1], "pool_type": "last",
            "proj_type": "linear" if has_head else "none", "proj_bias": has_head,
            "tokenizer_clean": siglip_cleaning(vocab_size),
            **_block_sizes(file, "txt/Encoder_0/encoderblock", block, width),
        },
        path=f"{file.path}: text tower",
    )  # fmt: skip
    embed_dim = shapes["txt/head/kernel"][1] if has_head else width
    bias = -10.0 if "b" in shapes else None
    return ClipConfig(
        embed_dim=embed_dim, init_logit_scale=math.log(10.0), init_logit_bias=bias, vision_cfg=vision, text_cfg=text
    )


def _vision_sizes(file: TensorFile, prefix: str, *, positions: str) -> VisionConfig:
    shapes = {name: info.shape for name, info in file.tensors.items()}
    patch, _, _, width = shapes[f"{prefix}embedding/kernel"]
    block = f"{prefix}Transformer/encoderblock_0"
    attention = next(name for name in (_AUGREG["MultiHeadDotProductAttention_0"], "MultiHeadDotProductAttention_0")
                     if f"{block}/{name}/query/kernel" in shapes)  # fmt: skip
    class_token, mapped = f"{prefix}cls" in shapes, f"{prefix}MAPHead_0/probe" in shapes
    has_head = bool(prefix) and f"{prefix}head/kernel" in shapes
    grid = math.isqrt(shapes[positions][-2])  # a row for the class token does not change it
    half = (0.5, 0.5, 0.5)
    return build(
        VisionConfig,
        {
            "image_size": grid * patch, "patch_size": patch, "class_token": class_token, "no_ln_pre": True,
            "patch_bias": True, "head_width": shapes[f"{block}/{attention}/query/kernel"][2],
            "pool_type": "map" if mapped else "tok" if class_token else "avg",
            "proj_type": "linear" if has_head or not prefix else "none", "proj_bias": has_head,
            "image_mean": half, "image_std": half, "image_resize": "squash",
            **_block_sizes(file, f"{prefix}Transformer/encoderblock", block, width),
        },
        path=f"{file.path}: image tower",
    )  # fmt: skip


def _block_sizes(file: TensorFile, blocks: str, first: str, width: int) -> dict[str, Any]:
    numbers = [int(m[1]) for name in file.tensors if (m := re.match(rf"{re.escape(blocks)}_(\d+)/", name))]
    hidden = next(
        info.shape[1]
        for name, info in file.tensors.items()
        if name.startswith(f"{first}/MlpBlock_") and name.endswith("/Dense_0/kernel")
    )
    return {"width": width, "layers": max(numbers) + 1, "mlp_ratio": mlp_ratio(hidden, width),
            "activation": "gelu_tanh", "ln_eps": 1e-6}  # fmt: skip


def check_expressible(config: ClipConfig) -> None:
    """Raises ConfigError with the keys of a model that big_vision's two towers cannot express."""
    vision, text = config.vision_cfg, config.text_cfg
    wanted = {
        "vision_cfg.stem": (vision.stem, "patch"),
        "vision_cfg.patch_bias": (vision.patch_bias, True),
        "vision_cfg.no_ln_pre": (vision.no_ln_pre, True),
        "vision_cfg.qk_norm": (vision.qk_norm, False),
        "vision_cfg.registers": (vision.registers, 0),
        "vision_cfg.pos_embed_type": (vision.pos_embed_type, "learnable"),
        "vision_cfg.modalities": (len(vision.modalities), 1),
        "vision_cfg.activation": (vision.activation, "gelu_tanh"),
        "vision_cfg.ln_eps": (vision.ln_eps, 1e-6),
        "vision_cfg.final_ln_after_pool": (vision.final_ln_after_pool, False),
        "vision_cfg.proj_bias": (vision.proj_bias, vision.proj_type == "linear"),
        "text_cfg.activation": (text.activation, "gelu_tanh"),
        "text_cfg.ln_eps": (text.ln_eps, 1e-6),
        "text_cfg.no_causal_mask": (text.no_causal_mask, True),
        "text_cfg.qk_norm": (text.qk_norm, False),
        "text_cfg.pool_type": (text.pool_type, "last"),
        "text_cfg.proj_bias": (text.proj_bias, text.proj_type == "linear"),
    }
    refused = [f"model.{key}={value!r}" for key, (value, expressible) in wanted.items() if value != expressible]
    refused += uncommon_options(config)
    if refused:
        raise ConfigError(f"--format=big_vision: big_vision cannot express {', '.join(refused)}")


def to_new_positions(config: ClipConfig, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters with what is added to the class token in the token itself, as new files have it."""
    if not config.vision_cfg.class_token:
        return dict(params)
    positions = params["visual/pos_embed"]
    return {**params, "visual/cls": params["visual/cls"] + positions[0], "visual/pos_embed": positions[1:]}
