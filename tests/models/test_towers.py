"""Both towers against an independent float64 form, option by option, with every parameter random."""

import jax
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from support import clip_models, towers_reference
from support.clip_models import BOS, EOS, PAD, TOKENS

CONV = {"stem": "conv", "stem_widths": (4, 8), "image_size": 8}
MERGE = {"stem": "patch_merge", "stem_widths": (4, 8)}
SINES = {"pos_embed_type": "sin_cos_2d"}
ROPE = {"rope": "row_column", "rope_grid": 5}
EVA02 = ROPE | {
    "mlp_type": "swiglu", "scale_fc": True, "scale_attn_inner": True, "qkv_bias": "qv", "patch_bias": True,
    "no_ln_pre": True, "proj_bias": True, "mlp_ratio": 4 * 2 / 3,
}  # fmt: skip
RESNET = {
    "stem": "resnet", "stem_widths": (2,), "stem_layers": (2, 1, 1, 1), "width": 64, "head_width": 32, "layers": 0,
    "image_size": 64, "patch_size": 32, "no_ln_pre": True, "pool_type": "attn", "proj_bias": True,
}  # fmt: skip
POOLER = {"attentional_pool": "shared", "attn_pooler_queries": 4, "attn_pooler_heads": 3}
PAIR = {"modalities": ("image", "depth"), "modality_channels": (3, 1)}

VISION = {
    "clip": {},
    "quick, one head, narrow mlp": {"activation": "quick_gelu", "head_width": 8, "mlp_ratio": 2.6},
    "tanh, qk norm, eps": {"activation": "gelu_tanh", "qk_norm": True, "ln_eps": 0.1},
    "conv": CONV,
    "conv, biases, quick, eps": CONV | {"patch_bias": True, "activation": "quick_gelu", "ln_eps": 0.1},
    "merge": MERGE,
    "merge of larger patches, biases": MERGE | {"patch_size": 8, "image_size": 16, "patch_bias": True},
    "patch bias, pixels left over": {"patch_bias": True, "image_size": 15},
    "sines, class": SINES,
    "sines, no class": {"class_token": False, "pool_type": "avg", **SINES},
    "registers": {"registers": 2},
    "no ln_pre, proj bias, norm after tok": {"no_ln_pre": True, "proj_bias": True, "final_ln_after_pool": True},
    "avg, registers": {"pool_type": "avg", "registers": 3},
    "avg, norm after": {"pool_type": "avg", "final_ln_after_pool": True},
    "map, registers, qk norm": {"pool_type": "map", "registers": 1, "qk_norm": True, "ln_eps": 0.1},
    "siglip": {
        "class_token": False, "no_ln_pre": True, "patch_bias": True, "pool_type": "map", "proj_type": "none",
        "activation": "gelu_tanh", "ln_eps": 1e-6, "image_mean": (0.5, 0.4, 0.3), "image_std": (0.5, 0.6, 0.7),
    },
    "eva02": EVA02,
    "eva02 enormous": {"block_norm": "res_post", "qkv_bias": "qv"},
    "post norms, layer scale": {"block_norm": "post", "ls_init_value": 0.1},
    "no biases, layer scale, avg": {
        "qkv_bias": "none", "ls_init_value": 0.1, "pool_type": "avg", "class_token": False,
    },
    "perception encoder": {
        "rope": "column_row", "rope_offset": 1.0, "pool_type": "map", "map_heads": 4, "map_mlp_ratio": 2.0,
        "proj_bias": True,
    },
    "rotary, registers, swiglu": {"rope": "column_row", "registers": 2, "mlp_type": "swiglu"},
    "mobileclip": {
        "stem": "patch_merge", "stem_widths": (3, 4, 8), "stem_norm": "batch", "patch_size": 8, "image_size": 16,
        "class_position": False,
    },
    "attentional pool": POOLER,
    "attentional pool, avg, no class": POOLER | {"pool_type": "avg", "class_token": False},
    "attentional pool, cascade": POOLER | {"attentional_pool": "cascade"},
    "attentional pool, parallel": POOLER | {"attentional_pool": "parallel"},
    "resnet": RESNET,
    "resnet of two modalities": RESNET | PAIR,
    "views": PAIR,
    "views of other channels": {"modalities": ("thermal", "image", "depth"), "modality_channels": (1, 3, 3)},
    "tokens": PAIR | {"fusion": "tokens"},
    "tokens, avg, registers": PAIR | {"fusion": "tokens", "pool_type": "avg", "registers": 1},
    "channels": PAIR | {"fusion": "channels"},
    "channels, two": {"modalities": ("radar", "image"), "modality_channels": (2, 3), "fusion": "channels"},
    "gated": PAIR | {"fusion": "gated"},
    "gated, three, avg": {
        "modalities": ("thermal", "image", "depth"), "modality_channels": (1, 3, 3), "fusion": "gated",
        "pool_type": "avg", "class_token": False,
    },
    "one modality of one channel": {"modalities": ("depth",), "modality_channels": (1,)},
}  # fmt: skip

BOTH_WAYS = {"no_causal_mask": True}
BERT = BOTH_WAYS | {"block_norm": "post", "embed_norm": True, "mask_padding": True, "ln_eps": 1e-12}
CLASS = {"embed_cls": True, "final_ln_after_pool": True}
TEXT = {
    "clip": {},
    "quick, one head, narrow mlp": {"activation": "quick_gelu", "heads": 1, "mlp_ratio": 2.6},
    "tanh, qk norm, eps, both ways": {"activation": "gelu_tanh", "qk_norm": True, "ln_eps": 0.1, **BOTH_WAYS},
    "eos": {"pool_type": "eos"},
    "eos that is not the highest, both ways": {"pool_type": "eos", "eos_id": 9, **BOTH_WAYS},
    "first, both ways": {"pool_type": "first", **BOTH_WAYS},
    "last, norm after": {"pool_type": "last", "final_ln_after_pool": True},
    "mean": {"pool_type": "mean"},
    "mean, another pad": {"pool_type": "mean", "pad_id": 16},  # before words too
    "mean, both ways, another pad": {"pool_type": "mean", "pad_id": 16, **BOTH_WAYS},
    "mean, norm after": {"pool_type": "mean", "final_ln_after_pool": True},
    "siglip": {
        "activation": "gelu_tanh", "ln_eps": 1e-6, "no_causal_mask": True, "pool_type": "last", "proj_bias": True,
    },
    "no proj": {"proj_type": "none"},
    "class token, open_clip's mask": CLASS,
    "class token, correct mask": CLASS | {"correct_cls_mask": True},
    "bert": BERT | {"token_types": 2, "pool_type": "first", "pool_tanh": True, "num_positions": 9},
    "roberta": BERT | {"positions_from_pad": True, "token_types": 1, "pool_type": "mean", "proj_type": "mlp"},
    "distilbert": BERT | {"pool_type": "first"},
    "eva's blocks": {"mlp_type": "swiglu", "scale_fc": True, "scale_attn_inner": True, "ls_init_value": 0.1},
}  # fmt: skip


def assert_same(got, expected, *, tolerance=1e-5):
    assert got.shape == expected.shape and got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def structure(name):
    """Most of these tests' time is compilation, and two layers written out compile faster than a loop."""
    return {} if name in ("clip", "siglip", "mean") else {"scan": False, "remat": "none"}


def vision_case(name):
    options = VISION[name]
    config = clip_models.config(vision=options, embed_dim=8 if options.get("proj_type") else 6, **structure(name))
    graph, shapes = clip_models.split(config)
    params = clip_models.random_params(shapes)
    encode = jax.jit(lambda params, images: clip_models.model(graph, params).encode_image(images))
    return config, params, encode


def text_case(name):
    options = TEXT[name]
    config = clip_models.config(text=options, embed_dim=8 if options.get("proj_type") else 6, **structure(name))
    graph, shapes = clip_models.split(config)
    params = clip_models.random_params(shapes)
    encode = jax.jit(lambda params, tokens: clip_models.model(graph, params).encode_text(tokens))
    return config, params, encode


@pytest.mark.parametrize("name", VISION)
def test_the_image_tower_is_its_reference(name):
    config, params, encode = vision_case(name)
    images = clip_models.images(config)
    expected = towers_reference.encode_image(clip_models.double(params), images, config=config)
    assert_same(np.asarray(encode(params, images)), expected)


@pytest.mark.parametrize("name", TEXT)
def test_the_text_tower_is_its_reference(name):
    config, params, encode = text_case(name)
    expected = towers_reference.encode_text(clip_models.double(params), TOKENS, config=config)
    assert_same(np.asarray(encode(params, TOKENS)), expected)


@pytest.mark.parametrize("name", ["views", "tokens", "gated"])
@pytest.mark.parametrize("present", ["image", "depth"])
def test_a_modality_may_be_absent(name, present):
    config, params, encode = vision_case(name)
    images = {present: clip_models.images(config)[present]}
    expected = towers_reference.encode_image(clip_models.double(params), images, config=config)
    assert_same(np.asarray(encode(params, images)), expected)


def test_texts_may_be_shorter_than_the_context():
    config, params, encode = text_case("clip")
    tokens = np.array([[BOS, 5, EOS], [BOS, EOS, PAD]], np.int32)
    expected = towers_reference.encode_text(clip_models.double(params), tokens, config=config)
    assert_same(np.asarray(encode(params, tokens)), expected)


def test_a_text_of_pads_alone_has_a_finite_embedding():
    config, params, encode = text_case("mean")
    tokens = np.array([[PAD] * 7, [BOS, 5, EOS, PAD, PAD, PAD, PAD]], np.int32)
    got = np.asarray(encode(params, tokens))
    assert np.isfinite(got).all()
    expected = towers_reference.encode_text(clip_models.double(params), tokens[1:], config=config)
    assert_same(got[1:], expected)


@pytest.mark.parametrize(
    "option",
    [
        {"activation": "gelu_tanh"}, {"activation": "quick_gelu"}, {"ln_eps": 0.1}, {"pool_type": "avg"},
        SINES, {"rope": "row_column"}, {"block_norm": "post"}, {"block_norm": "res_post"},
    ],
)  # fmt: skip
def test_the_reference_tells_image_towers_apart(option):
    """A comparison at 1e-5 means something only where the options differ by more."""
    base, other = clip_models.config(), clip_models.config(vision=option)
    params = clip_models.double(clip_models.random_params(clip_models.split(base)[1]))
    images = clip_models.images(base)
    one, two = (towers_reference.encode_image(params, images, config=config) for config in (base, other))
    assert np.abs(one - two).max() > 1e-4


@pytest.mark.parametrize(
    "option",
    [
        {"activation": "gelu_tanh"}, {"activation": "quick_gelu"}, {"ln_eps": 0.1}, {"pool_type": "last"},
        {"pool_type": "first"}, {"pool_type": "mean"}, {"pool_type": "eos", "eos_id": 9}, BOTH_WAYS,
        BOTH_WAYS | {"mask_padding": True},
    ],
)  # fmt: skip
def test_the_reference_tells_text_towers_apart(option):
    base, other = clip_models.config(), clip_models.config(text=option)
    params = clip_models.double(clip_models.random_params(clip_models.split(base)[1]))
    one, two = (towers_reference.encode_text(params, TOKENS, config=config) for config in (base, other))
    assert np.abs(one - two).max() > 1e-4


def test_rotary_positions_depend_on_order_grid_and_offset():
    base, *others = (
        {"rope": "row_column"} | more for more in ({}, {"rope": "column_row"}, {"rope_grid": 5}, {"rope_offset": 1.0})
    )
    config = clip_models.config(vision=base)
    params = clip_models.double(clip_models.random_params(clip_models.split(config)[1]))
    images = clip_models.images(config)
    expected = towers_reference.encode_image(params, images, config=config)
    for other in others:
        got = towers_reference.encode_image(params, images, config=clip_models.config(vision=other))
        assert np.abs(got - expected).max() > 1e-4, other


def test_rotary_positions_know_no_patch_that_was_left_out():
    _, params, _ = vision_case("eva02")
    graph, _ = clip_models.split(clip_models.config(vision=VISION["eva02"], **structure("eva02")))
    visual = clip_models.model(graph, params).visual
    with pytest.raises(ConfigError, match=r"vision_cfg\.rope.*4 of 9 patches.*patch_dropout"):
        visual.pool(jax.numpy.zeros((2, 5, 8)))


def test_statistics_of_batch_norms_have_no_gradient():
    config, params, _ = vision_case("mobileclip")
    graph, _ = clip_models.split(config)
    images = clip_models.images(config, n=1)
    gradient = jax.jit(jax.grad(lambda p: clip_models.model(graph, p).encode_image(images).sum()))(params)
    found = {k: np.abs(v).max() for k, v in clip_models.flat(gradient).items() if ".norm_" in k}
    assert {k for k, v in found.items() if v == 0} == {k for k in found if k.endswith((".mean", ".var"))} != set()
