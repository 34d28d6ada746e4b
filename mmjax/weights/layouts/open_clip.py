"""open_clip's names: OpenAI's CLIP and its relatives, with towers of timm and transformers."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from mmjax.models.block_config import BlockConfig
from mmjax.models.config import ClipConfig, TextConfig, VisionConfig
from mmjax.models.joint_config import DecoderConfig
from mmjax.weights.layouts import open_clip_towers as towers
from mmjax.weights.rules import CONV, FLAT, SAME, SCALAR, Rule, dense, linear, norm, qkv


def rules(config: ClipConfig, *, text_prefix: str = "") -> Iterator[Rule]:
    """The rules of a model; ``text_prefix`` is ``"text."`` in files whose text tower is a module of its own."""
    vision, text = config.vision_cfg, config.text_cfg
    if vision.stem == "resnet":
        yield from towers.resnet(vision)
    else:
        yield from towers.timm_tower(vision) if uses_timm(config) else _image_tower(vision, width=config.embed_dim)
    yield from towers.bert_text(text) if uses_transformers(config) else _text_tower(text, text_prefix)
    if config.decoder is not None:
        yield from _decoder(config.decoder)
    yield Rule(("logit_scale",), "logit_scale", SCALAR)
    if config.init_logit_bias is not None:
        yield Rule(("logit_bias",), "logit_bias", SCALAR)


def _text_tower(config: TextConfig, text: str) -> Iterator[Rule]:
    yield Rule(("text/token_embed/embedding",), f"{text}token_embedding.weight", SAME)
    yield Rule(("text/pos_embed",), f"{text}positional_embedding", SAME)
    if config.embed_cls:
        yield Rule(("text/cls_embed",), f"{text}cls_emb", SAME)
    yield from _blocks(config, "text/blocks", f"{text}transformer.resblocks")
    yield from norm("text/ln_final", f"{text}ln_final")
    if config.proj_type == "linear":
        if config.proj_bias:
            yield from dense("text/proj", f"{text}text_projection")
        else:
            yield Rule(("text/proj/kernel",), f"{text}text_projection", SAME)


def uses_timm(config: ClipConfig) -> bool:
    """Whether open_clip takes this image tower from timm: its own has no bias before or after its blocks."""
    vision = config.vision_cfg
    return vision.stem != "resnet" and (vision.pool_type == "map" or vision.patch_bias or vision.proj_bias)


def uses_transformers(config: ClipConfig) -> bool:
    """Whether open_clip takes this text tower from transformers: BERT and its relatives."""
    return config.text_cfg.block_norm == "post"


def find_text_prefix(names: Collection[str]) -> str:
    """``"text."`` if the text tower is a module of its own in the file, else nothing."""
    return "text." if "text.positional_embedding" in names else ""


def _image_tower(vision: VisionConfig, *, width: int) -> Iterator[Rule]:
    yield Rule(("visual/patch_embed/kernel",), "visual.conv1.weight", CONV)
    yield Rule(("visual/cls",), "visual.class_embedding", SAME)
    yield Rule(("visual/pos_embed",), "visual.positional_embedding", SAME)
    if not vision.no_ln_pre:
        yield from norm("visual/ln_pre", "visual.ln_pre")
    yield from _blocks(vision, "visual/blocks", "visual.transformer.resblocks")
    if vision.attentional_pool != "none":
        yield from _pooler("attn_pool", "attn_pooler", same_width=width == vision.width)
    if vision.attentional_pool in ("cascade", "parallel"):
        same = vision.attentional_pool == "cascade" or width == vision.width
        yield from _pooler("attn_pool_contrastive", "attn_pooler_contrastive", same_width=same)
    yield from norm("visual/ln_post", "visual.ln_post")
    if vision.proj_type == "linear":
        yield Rule(("visual/proj/kernel",), "visual.proj", SAME)


def _pooler(theirs: str, ours: str, *, same_width: bool) -> Iterator[Rule]:
    theirs, ours = f"visual.{theirs}", f"visual/{ours}"
    yield Rule((f"{ours}/probe",), f"{theirs}.query", SAME)
    yield from norm(f"{ours}/ln_q", f"{theirs}.ln_q")
    yield from norm(f"{ours}/ln_k", f"{theirs}.ln_k")
    if same_width:
        yield from qkv(f"{ours}/attn", f"{theirs}.attn.in_proj_weight", f"{theirs}.attn.in_proj_bias")
    else:
        names = ("query", "key", "value")
        for name in names:
            yield Rule((f"{ours}/attn/{name}/kernel",), f"{theirs}.attn.{name[0]}_proj_weight", linear())
        yield Rule(tuple(f"{ours}/attn/{name}/bias" for name in names), f"{theirs}.attn.in_proj_bias", FLAT)
    yield from dense(f"{ours}/attn/out", f"{theirs}.attn.out_proj", input_axes=2)


def _decoder(decoder: DecoderConfig) -> Iterator[Rule]:
    """CoCa's; others have parameters that this layout has no names for."""
    yield from _blocks(decoder, "decoder/blocks/own", "text_decoder.resblocks")
    yield from _blocks(decoder, "decoder/blocks/cross", "text_decoder.cross_attn")
    yield from norm("decoder/blocks/cross/ln_context", "text_decoder.cross_attn.{layer}.ln_1_kv")
    yield from norm("decoder/ln_final", "text_decoder.ln_final")
    yield Rule(("decoder/head/kernel",), "text_decoder.text_projection", SAME)


def _blocks(tower: BlockConfig, ours: str, theirs: str) -> Iterator[Rule]:
    block = f"{theirs}.{{layer}}"
    yield from norm(f"{ours}/ln_1", f"{block}.ln_1")
    yield from qkv(f"{ours}/attn", f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias")
    yield from dense(f"{ours}/attn/out", f"{block}.attn.out_proj", input_axes=2)
    yield from norm(f"{ours}/ln_2", f"{block}.ln_2")
    yield from dense(f"{ours}/mlp/fc1", f"{block}.mlp.c_fc")
    yield from dense(f"{ours}/mlp/fc2", f"{block}.mlp.c_proj")
    if tower.scale_attn_inner:
        yield from norm(f"{ours}/attn/ln_inner", f"{block}.attn.ln_inner")
    if tower.scale_fc:
        yield from norm(f"{ours}/mlp/ln", f"{block}.mlp.ln")
    if tower.ls_init_value is not None:
        for number in (1, 2):
            yield Rule((f"{ours}/ls_{number}/gamma",), f"{block}.ls_{number}.gamma", SAME)
