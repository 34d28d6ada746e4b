"""open_clip's names: OpenAI's CLIP and its relatives, and SigLIP with an image tower of timm."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from mmjax.models.config import ClipConfig
from mmjax.weights.rules import CONV, SAME, SCALAR, Rule, dense, leading, norm, qkv


def rules(config: ClipConfig, *, text_prefix: str = "") -> Iterator[Rule]:
    """The rules of a model; ``text_prefix`` is ``"text."`` in files whose text tower is a module of its own."""
    yield from _timm_image_tower(config) if uses_timm(config) else _image_tower(config)
    text = text_prefix
    yield Rule(("text/token_embed/embedding",), f"{text}token_embedding.weight", SAME)
    yield Rule(("text/pos_embed",), f"{text}positional_embedding", SAME)
    yield from _blocks("text/blocks", f"{text}transformer.resblocks")
    yield from norm("text/ln_final", f"{text}ln_final")
    if config.text_cfg.proj_type == "linear":
        if config.text_cfg.proj_bias:
            yield from dense("text/proj", f"{text}text_projection")
        else:
            yield Rule(("text/proj/kernel",), f"{text}text_projection", SAME)
    yield Rule(("logit_scale",), "logit_scale", SCALAR)
    if config.init_logit_bias is not None:
        yield Rule(("logit_bias",), "logit_bias", SCALAR)


def uses_timm(config: ClipConfig) -> bool:
    """Whether open_clip takes this image tower from timm: a SigLIP tower."""
    return config.vision_cfg.pool_type == "map"


def find_text_prefix(names: Collection[str]) -> str:
    """``"text."`` if the text tower is a module of its own in the file, else nothing."""
    return "text." if "text.positional_embedding" in names else ""


def _image_tower(config: ClipConfig) -> Iterator[Rule]:
    vision = config.vision_cfg
    yield Rule(("visual/patch_embed/kernel",), "visual.conv1.weight", CONV)
    if vision.patch_bias:
        yield Rule(("visual/patch_embed/bias",), "visual.conv1.bias", SAME)
    yield Rule(("visual/cls",), "visual.class_embedding", SAME)
    yield Rule(("visual/pos_embed",), "visual.positional_embedding", SAME)
    if not vision.no_ln_pre:
        yield from norm("visual/ln_pre", "visual.ln_pre")
    yield from _blocks("visual/blocks", "visual.transformer.resblocks")
    yield from norm("visual/ln_post", "visual.ln_post")
    if vision.proj_type == "linear":
        yield Rule(("visual/proj/kernel",), "visual.proj", SAME)


def _blocks(ours: str, theirs: str) -> Iterator[Rule]:
    block = f"{theirs}.{{layer}}"
    yield from norm(f"{ours}/ln_1", f"{block}.ln_1")
    yield from qkv(f"{ours}/attn", f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias")
    yield from dense(f"{ours}/attn/out", f"{block}.attn.out_proj", input_axes=2)
    yield from norm(f"{ours}/ln_2", f"{block}.ln_2")
    yield from dense(f"{ours}/mlp/fc1", f"{block}.mlp.c_fc")
    yield from dense(f"{ours}/mlp/fc2", f"{block}.mlp.c_proj")


def _timm_image_tower(config: ClipConfig) -> Iterator[Rule]:
    trunk, block, pool = "visual.trunk", "visual.trunk.blocks.{layer}", "visual.trunk.attn_pool"
    yield Rule(("visual/patch_embed/kernel",), f"{trunk}.patch_embed.proj.weight", CONV)
    yield Rule(("visual/patch_embed/bias",), f"{trunk}.patch_embed.proj.bias", SAME)
    yield Rule(("visual/pos_embed",), f"{trunk}.pos_embed", leading(1))
    yield from norm("visual/blocks/ln_1", f"{block}.norm1")
    yield from qkv("visual/blocks/attn", f"{block}.attn.qkv.weight", f"{block}.attn.qkv.bias")
    yield from dense("visual/blocks/attn/out", f"{block}.attn.proj", input_axes=2)
    yield from norm("visual/blocks/ln_2", f"{block}.norm2")
    yield from dense("visual/blocks/mlp/fc1", f"{block}.mlp.fc1")
    yield from dense("visual/blocks/mlp/fc2", f"{block}.mlp.fc2")
    yield from norm("visual/ln_post", f"{trunk}.norm")
    yield Rule(("visual/map_head/probe",), f"{pool}.latent", leading(2))
    yield from dense("visual/map_head/attn/query", f"{pool}.q")
    yield from qkv("visual/map_head/attn", f"{pool}.kv.weight", f"{pool}.kv.bias", names=("key", "value"))
    yield from dense("visual/map_head/attn/out", f"{pool}.proj", input_axes=2)
    yield from norm("visual/map_head/ln", f"{pool}.norm")
    yield from dense("visual/map_head/mlp/fc1", f"{pool}.mlp.fc1")
    yield from dense("visual/map_head/mlp/fc2", f"{pool}.mlp.fc2")
