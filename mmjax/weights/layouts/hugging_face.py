"""Names of transformers' ``CLIPModel`` and ``SiglipModel``, of either tower of them alone, and of BERT's relatives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from mmjax.models.config import ClipConfig, TextConfig
from mmjax.weights.layouts.open_clip_towers import bert
from mmjax.weights.pretrained import RenamedFile
from mmjax.weights.rules import CONV, FLAT, SAME, SCALAR, Rule, dense, leading, norm, qkv
from mmjax.weights.tensors import TensorFile


def clip_rules(config: ClipConfig) -> Iterator[Rule]:
    """The rules of a ``CLIPModel``."""
    embeddings = "vision_model.embeddings"
    yield Rule(("visual/patch_embed/kernel",), f"{embeddings}.patch_embedding.weight", CONV)
    yield Rule(("visual/cls",), f"{embeddings}.class_embedding", SAME)
    yield Rule(("visual/pos_embed",), f"{embeddings}.position_embedding.weight", SAME)
    yield from norm("visual/ln_pre", "vision_model.pre_layrnorm")  # spelled so in transformers
    yield from _blocks("visual/blocks", "vision_model.encoder.layers")
    yield from norm("visual/ln_post", "vision_model.post_layernorm")
    yield from dense("visual/proj", "visual_projection", bias=False)
    yield from _text_tower()
    yield from dense("text/proj", "text_projection", bias=False)
    yield Rule(("logit_scale",), "logit_scale", SCALAR)


def siglip_rules(config: ClipConfig) -> Iterator[Rule]:
    """The rules of a ``SiglipModel``."""
    embeddings, head = "vision_model.embeddings", "vision_model.head"
    yield Rule(("visual/patch_embed/kernel",), f"{embeddings}.patch_embedding.weight", CONV)
    yield Rule(("visual/patch_embed/bias",), f"{embeddings}.patch_embedding.bias", SAME)
    yield Rule(("visual/pos_embed",), f"{embeddings}.position_embedding.weight", SAME)
    yield from _blocks("visual/blocks", "vision_model.encoder.layers")
    yield from norm("visual/ln_post", "vision_model.post_layernorm")
    if config.vision_cfg.pool_type == "map":
        yield Rule(("visual/map_head/probe",), f"{head}.probe", leading(2))
        yield from qkv("visual/map_head/attn", f"{head}.attention.in_proj_weight", f"{head}.attention.in_proj_bias")
        yield from dense("visual/map_head/attn/out", f"{head}.attention.out_proj", input_axes=2)
        yield from norm("visual/map_head/ln", f"{head}.layernorm")
        yield from dense("visual/map_head/mlp/fc1", f"{head}.mlp.fc1")
        yield from dense("visual/map_head/mlp/fc2", f"{head}.mlp.fc2")
    yield from _text_tower()
    yield from dense("text/proj", "text_model.head")
    yield Rule(("logit_scale",), "logit_scale", FLAT)
    yield Rule(("logit_bias",), "logit_bias", FLAT)


def open_bert(file: TensorFile, text: TextConfig, kind: str) -> tuple[TensorFile, tuple[Rule, ...]]:
    """BERT or a relative alone, or under a head for another task; old files call a norm's scale ``gamma``."""
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    prefix = f"{kind.removeprefix('xlm-')}."
    names: dict[str, tuple[str, int | None]] = {}
    for name in file.tensors:
        renamed = name.removeprefix(prefix)
        for theirs, ours in old.items():
            renamed = renamed.replace(theirs, ours)
        names[renamed] = (name, None)
    # Whoever wants BERT's own pooler may have it; the rest of the file's heads is left.
    return RenamedFile(file, names), tuple(bert(dataclasses.replace(text, pool_tanh=text.token_types > 0), ""))


def _text_tower() -> Iterator[Rule]:
    yield Rule(("text/token_embed/embedding",), "text_model.embeddings.token_embedding.weight", SAME)
    yield Rule(("text/pos_embed",), "text_model.embeddings.position_embedding.weight", SAME)
    yield from _blocks("text/blocks", "text_model.encoder.layers")
    yield from norm("text/ln_final", "text_model.final_layer_norm")


def _blocks(ours: str, theirs: str) -> Iterator[Rule]:
    block = f"{theirs}.{{layer}}"
    yield from norm(f"{ours}/ln_1", f"{block}.layer_norm1")
    for name, letter in (("query", "q"), ("key", "k"), ("value", "v")):
        yield from dense(f"{ours}/attn/{name}", f"{block}.self_attn.{letter}_proj")
    yield from dense(f"{ours}/attn/out", f"{block}.self_attn.out_proj", input_axes=2)
    yield from norm(f"{ours}/ln_2", f"{block}.layer_norm2")
    yield from dense(f"{ours}/mlp/fc1", f"{block}.mlp.fc1")
    yield from dense(f"{ours}/mlp/fc2", f"{block}.mlp.fc2")
