"""open_clip's names of towers that it takes from timm and transformers, and of CLIP's ResNets."""

from __future__ import annotations

from collections.abc import Iterator

from mmjax.models.config import TextConfig, VisionConfig
from mmjax.weights.rules import CONV, FLAT, SAME, Rule, dense, leading, linear, norm, qkv

_ATTENTION = ("query", "key", "value")


def timm_tower(vision: VisionConfig) -> Iterator[Rule]:
    """SigLIP, EVA, PE-Core and MobileCLIP's vision transformers."""
    trunk, block, ours = "visual.trunk", "visual.trunk.blocks.{layer}", "visual/blocks"
    yield from _timm_stem(vision, f"{trunk}.patch_embed")
    if vision.class_token:
        yield Rule(("visual/cls",), f"{trunk}.cls_token", leading(2))
    yield Rule(("visual/pos_embed",), f"{trunk}.pos_embed", leading(1))
    if not vision.no_ln_pre:
        yield from norm("visual/ln_pre", f"{trunk}.norm_pre")
    yield from norm(f"{ours}/ln_1", f"{block}.norm1")
    yield from _timm_attention(vision, f"{ours}/attn", f"{block}.attn")
    yield from norm(f"{ours}/ln_2", f"{block}.norm2")
    if vision.mlp_type == "swiglu":
        yield from dense(f"{ours}/mlp/gate", f"{block}.mlp.fc1_g")
    yield from dense(f"{ours}/mlp/fc1", f"{block}.mlp.{'fc1_x' if vision.mlp_type == 'swiglu' else 'fc1'}")
    yield from dense(f"{ours}/mlp/fc2", f"{block}.mlp.fc2")
    if vision.scale_fc:
        yield from norm(f"{ours}/mlp/ln", f"{block}.mlp.norm")
    if vision.ls_init_value is not None:
        for number in (1, 2):
            yield Rule((f"{ours}/ls_{number}/gamma",), f"{block}.ls{number}.gamma", SAME)
    yield from norm("visual/ln_post", f"{trunk}.norm")
    if vision.pool_type == "map":
        yield from _timm_map_head(f"{trunk}.attn_pool")
    if vision.proj_type == "linear":
        yield from dense(
            "visual/proj", f"{trunk}.head" if vision.proj_bias else "visual.head.proj", bias=vision.proj_bias
        )


def _timm_stem(vision: VisionConfig, theirs: str) -> Iterator[Rule]:
    ours = "visual/patch_embed"
    if vision.stem == "patch":
        yield Rule((f"{ours}/kernel",), f"{theirs}.proj.weight", CONV)
        if vision.patch_bias:
            yield Rule((f"{ours}/bias",), f"{theirs}.proj.bias", SAME)
        return
    last = len(vision.stem_widths) - 1
    for i in range(last + 1):
        yield Rule((f"{ours}/conv_{i}/kernel",), f"{theirs}.backbone.{i}.conv.weight", CONV)
        if i < last:
            yield from _batch_norm(f"{ours}/norm_{i}", f"{theirs}.backbone.{i}.bn")
    yield Rule((f"{ours}/conv_{last}/bias",), f"{theirs}.backbone.{last}.conv.bias", SAME)


def _timm_attention(vision: VisionConfig, ours: str, theirs: str) -> Iterator[Rule]:
    if vision.scale_attn_inner:  # EVA02's queries, keys and values have tensors of their own
        for name, letter in zip(_ATTENTION, "qkv", strict=True):
            yield from dense(f"{ours}/{name}", f"{theirs}.{letter}_proj", bias=letter in vision.qkv_bias)
        yield from norm(f"{ours}/ln_inner", f"{theirs}.norm")
    elif vision.qkv_bias == "qkv":
        yield from qkv(ours, f"{theirs}.qkv.weight", f"{theirs}.qkv.bias")
    else:
        yield Rule(tuple(f"{ours}/{name}/kernel" for name in _ATTENTION), f"{theirs}.qkv.weight", linear())
        if vision.qkv_bias == "qv":
            yield Rule((f"{ours}/query/bias",), f"{theirs}.q_bias", FLAT)
            yield Rule((f"{ours}/value/bias",), f"{theirs}.v_bias", FLAT)
    yield from dense(f"{ours}/out", f"{theirs}.proj", input_axes=2)


def _timm_map_head(pool: str) -> Iterator[Rule]:
    yield Rule(("visual/map_head/probe",), f"{pool}.latent", leading(2))
    yield from dense("visual/map_head/attn/query", f"{pool}.q")
    yield from qkv("visual/map_head/attn", f"{pool}.kv.weight", f"{pool}.kv.bias", names=("key", "value"))
    yield from dense("visual/map_head/attn/out", f"{pool}.proj", input_axes=2)
    yield from norm("visual/map_head/ln", f"{pool}.norm")
    yield from dense("visual/map_head/mlp/fc1", f"{pool}.mlp.fc1")
    yield from dense("visual/map_head/mlp/fc2", f"{pool}.mlp.fc2")


def resnet(vision: VisionConfig) -> Iterator[Rule]:
    """CLIP's ModifiedResNet."""
    stem = "visual/patch_embed"
    for i in range(3):
        yield Rule((f"{stem}/conv_{i}/kernel",), f"visual.conv{i + 1}.weight", CONV)
        yield from _batch_norm(f"{stem}/norm_{i}", f"visual.bn{i + 1}")
    inputs = vision.stem_widths[0]
    for stage, layers in enumerate(vision.stem_layers):
        for layer in range(layers):
            ours, theirs = f"{stem}/stage_{stage}_{layer}", f"visual.layer{stage + 1}.{layer}"
            for i in range(3):
                yield Rule((f"{ours}/conv_{i}/kernel",), f"{theirs}.conv{i + 1}.weight", CONV)
                yield from _batch_norm(f"{ours}/norm_{i}", f"{theirs}.bn{i + 1}")
            outputs = 4 * vision.stem_widths[0] * 2**stage
            if layer == 0 and (stage or inputs != outputs):
                yield Rule((f"{ours}/shortcut/kernel",), f"{theirs}.downsample.0.weight", CONV)
                yield from _batch_norm(f"{ours}/shortcut_norm", f"{theirs}.downsample.1")
    pool = "visual.attnpool"
    yield Rule(("visual/pos_embed",), f"{pool}.positional_embedding", SAME)
    for name, letter in zip(_ATTENTION, "qkv", strict=True):
        yield from dense(f"visual/attn_pool/{name}", f"{pool}.{letter}_proj")
    yield from dense("visual/proj", f"{pool}.c_proj")


def _batch_norm(ours: str, theirs: str) -> Iterator[Rule]:
    yield from norm(ours, theirs)
    yield Rule((f"{ours}/mean",), f"{theirs}.running_mean", SAME)
    yield Rule((f"{ours}/var",), f"{theirs}.running_var", SAME)


def bert_text(text: TextConfig) -> Iterator[Rule]:
    """A text tower of transformers with open_clip's projection."""
    yield from bert(text, "text.transformer.")
    if text.proj_type == "mlp":
        yield from dense("text/proj_hidden", "text.proj.0", bias=False)
        yield from dense("text/proj", "text.proj.2", bias=False)
    elif text.proj_type == "linear":
        yield from dense("text/proj", "text.proj", bias=False)


def bert(text: TextConfig, prefix: str) -> Iterator[Rule]:
    """BERT, RoBERTa and XLM-R, or DistilBERT, which has no kinds of sentences; names begin with ``prefix``."""
    embeddings, ours = f"{prefix}embeddings", "text/blocks"
    yield Rule(("text/token_embed/embedding",), f"{embeddings}.word_embeddings.weight", SAME)
    yield Rule(("text/pos_embed",), f"{embeddings}.position_embeddings.weight", SAME)
    yield from norm("text/ln_embed", f"{embeddings}.LayerNorm")
    if text.token_types:
        yield Rule(("text/type_embed",), f"{embeddings}.token_type_embeddings.weight", SAME)
        block = f"{prefix}encoder.layer.{{layer}}"
        names = {name: f"attention.self.{name}" for name in _ATTENTION}
        out, fc1, fc2 = "attention.output.dense", "intermediate.dense", "output.dense"
        norms = ("attention.output.LayerNorm", "output.LayerNorm")
    else:
        block = f"{prefix}transformer.layer.{{layer}}"
        names = {name: f"attention.{name[0]}_lin" for name in _ATTENTION}
        out, fc1, fc2 = "attention.out_lin", "ffn.lin1", "ffn.lin2"
        norms = ("sa_layer_norm", "output_layer_norm")
    for name, theirs in names.items():
        yield from dense(f"{ours}/attn/{name}", f"{block}.{theirs}")
    yield from dense(f"{ours}/attn/out", f"{block}.{out}", input_axes=2)
    yield from dense(f"{ours}/mlp/fc1", f"{block}.{fc1}")
    yield from dense(f"{ours}/mlp/fc2", f"{block}.{fc2}")
    for number, theirs in enumerate(norms, 1):
        yield from norm(f"{ours}/ln_{number}", f"{block}.{theirs}")
    if text.pool_tanh:
        yield from dense("text/pooler", f"{prefix}pooler.dense")
