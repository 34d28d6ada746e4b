"""Sizes of the named models, and the rules of the schema."""

import dataclasses
import json
import math
import subprocess
import sys
import types

import jax
import pytest

from mmjax.core.config import ConfigError, build
from mmjax.models import presets
from mmjax.models.config import ClipConfig, TextConfig, VisionConfig, with_tokenizer
from support import clip_models

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def tokenizer(**facts):
    return types.SimpleNamespace(**{"vocab_size": 50, "context_length": 22, "pad_id": 0, "eos_id": 2} | facts)


def config_of(name):
    return build(ClipConfig, presets.load(name), path="model")


def parameters(config):
    _, shapes = clip_models.split(config)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def blocks(width, layers):
    norms, attention, mlp = 2 * 2 * width, 4 * (width**2 + width), 2 * 4 * width**2 + 5 * width
    return layers * (norms + attention + mlp)


def clip_count(*, patch, width, layers, text_width, embed, text_layers=12, image=224, context=77, vocab=49408):
    """CLIP by the paper: no patch bias, a class token, norms before and after the blocks, bare projections."""
    vision = 3 * patch**2 * width + width + ((image // patch) ** 2 + 1) * width + 2 * 2 * width
    text = vocab * text_width + context * text_width + 2 * text_width
    return (
        vision + blocks(width, layers) + width * embed
        + text + blocks(text_width, text_layers) + text_width * embed
        + 1  # the temperature
    )  # fmt: skip


def siglip_count(*, patch, width, layers, image, context, vocab):
    """SigLIP: a patch bias, no class token, no norm before the blocks, a pooling head; a bias on the logits."""
    head = width + blocks(width, 1) - 2 * width  # a probe, and a block with one norm fewer
    vision = (3 * patch**2 + 1) * width + (image // patch) ** 2 * width + 2 * width + head
    text = vocab * width + context * width + 2 * width + width**2 + width
    return vision + text + 2 * blocks(width, layers) + 2


@pytest.mark.parametrize(
    ("name", "published", "formula"),
    [
        ("ViT-B-32", 151_277_313, clip_count(patch=32, width=768, layers=12, text_width=512, embed=512)),
        ("ViT-B-16", 149_620_737, clip_count(patch=16, width=768, layers=12, text_width=512, embed=512)),
        ("ViT-L-14", 427_616_513, clip_count(patch=14, width=1024, layers=24, text_width=768, embed=768)),
        ("ViT-S-16", None, clip_count(patch=16, width=384, layers=12, text_width=384, embed=384)),
        (
            "ViT-B-16-SigLIP",
            203_155_970,
            siglip_count(patch=16, width=768, layers=12, image=224, context=64, vocab=32000),
        ),
    ],
)
def test_named_models_have_the_published_number_of_parameters(name, published, formula):
    assert published in (None, formula)
    assert parameters(config_of(name)) == formula


@pytest.mark.parametrize("name", ["scenes-tiny", "scenes-small", "photos-small"])
def test_models_of_scenes_need_a_tokenizer_and_are_small(name):
    config = config_of(name)
    with pytest.raises(ConfigError, match=r"text_cfg\.vocab_size=None"):
        parameters(config)
    most = {"scenes-tiny": 300_000, "scenes-small": 5_000_000, "photos-small": 14_000_000}[name]
    assert most / 4 < parameters(with_tokenizer(config, tokenizer())) < most


def test_the_names_are_these():
    assert presets.names() == sorted(
        [
            "ALBEF-B-16",
            "CapPa-B-16",
            "CoCa-B-16",
            "ViLT-B-32",
            "ViT-B-16",
            "ViT-B-16-SigLIP",
            "ViT-B-32",
            "ViT-L-14",
            "ViT-S-16",
            "photos-small",
            "scenes-small",
            "scenes-tiny",
            "scenes-tiny-clip",
        ]
    )


@pytest.mark.parametrize("name", presets.names())
def test_a_loaded_section_is_complete_and_survives_json(name):
    section = presets.load(name)
    fields = {f.name for f in dataclasses.fields(ClipConfig)}
    assert section.keys() == fields
    assert section["vision_cfg"].keys() == {f.name for f in dataclasses.fields(VisionConfig)}
    assert section["text_cfg"].keys() == {f.name for f in dataclasses.fields(TextConfig)}
    config = build(ClipConfig, section, path="model")
    again = build(ClipConfig, json.loads(json.dumps(section)), path="model")
    assert again == config and dataclasses.asdict(again) == section


def test_a_loaded_section_is_the_callers_own():
    section = presets.load("ViT-B-16")
    section["vision_cfg"]["width"] = 1
    assert presets.load("ViT-B-16")["vision_cfg"]["width"] == 768


@pytest.mark.parametrize("name", presets.names())
def test_pixels_are_normalized_as_the_named_model_expects(name):
    vision = config_of(name).vision_cfg
    half = name.endswith("SigLIP") or name.startswith(("CapPa", "ViLT"))
    assert vision.image_mean == ((0.5,) * 3 if half else OPENAI_MEAN)
    assert vision.image_std == ((0.5,) * 3 if half else OPENAI_STD)


def test_temperatures_start_where_the_papers_start_them():
    clip, siglip = config_of("ViT-B-16"), config_of("ViT-B-16-SigLIP")
    assert clip.init_logit_scale == pytest.approx(math.log(1 / 0.07)) and clip.init_logit_bias is None
    assert siglip.init_logit_scale == pytest.approx(math.log(10)) and siglip.init_logit_bias == -10
    assert clip.max_logit_scale == siglip.max_logit_scale == 100


def test_clip_and_siglip_differ_where_their_papers_do():
    clip, siglip = config_of("ViT-B-16"), config_of("ViT-B-16-SigLIP")
    assert (clip.text_cfg.pool_type, clip.text_cfg.no_causal_mask) == ("argmax", False)
    assert (siglip.text_cfg.pool_type, siglip.text_cfg.no_causal_mask) == ("last", True)
    for tower in (clip.vision_cfg, clip.text_cfg):
        assert (tower.activation, tower.ln_eps) == ("gelu", 1e-5)
    for tower in (siglip.vision_cfg, siglip.text_cfg):
        assert (tower.activation, tower.ln_eps) == ("gelu_tanh", 1e-6)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'ViT-B-61'.*did you mean 'ViT-B-16'"):
        presets.load("ViT-B-61")


VISION_RULES = {
    "head_width": ({"width": 100, "head_width": 64}, "vision_cfg.head_width=64", "vision_cfg.width=100"),
    "layers": ({"stem": "resnet", "layers": 2}, "vision_cfg.layers=0", "stem='resnet'"),
    "negative layers": ({"layers": -1}, "vision_cfg.layers=-1", "between 0 and"),
    "patches of nothing": ({"patch_size": 0}, "vision_cfg.patch_size=0", "between 1 and"),
    "registers": ({"registers": -1}, "vision_cfg.registers=-1", "between 0 and"),
    "a modality twice": (
        {"modalities": ("image", "image"), "modality_channels": (3, 3)},
        "vision_cfg.modalities=('image', 'image')",
        "once",
    ),
    "patch_size": ({"image_size": 8, "patch_size": 16}, "vision_cfg.patch_size=16", "vision_cfg.image_size=8"),
    "pool_type": ({"class_token": False}, "vision_cfg.pool_type='tok'", "vision_cfg.class_token=True"),
    "final_ln": ({"pool_type": "map", "final_ln_after_pool": True}, "vision_cfg.final_ln_after_pool=True", "False"),
    "sines": (
        {"pos_embed_type": "sin_cos_2d", "width": 66, "head_width": 33},
        "vision_cfg.width=66",
        "multiple of 4",
    ),
    "channels": (
        {"modalities": ("image", "depth")},
        "vision_cfg.modality_channels=(3,)",
        "vision_cfg.modalities=('image', 'depth')",
    ),
    "no modality": ({"modalities": (), "modality_channels": ()}, "vision_cfg.modality_channels=()", "each"),
    "channels of views": ({"modality_channels": (2,)}, "vision_cfg.modality_channels=(2,)", "fusion='channels'"),
    "unused widths": ({"stem_widths": (8,)}, "vision_cfg.stem_widths=(8,)", "leave empty"),
    "no widths": ({"stem": "conv"}, "vision_cfg.stem_widths=()", "vision_cfg.width=768"),
    "last width": ({"stem": "conv", "stem_widths": (8, 16)}, "vision_cfg.stem_widths=(8, 16)", "vision_cfg.width=768"),
    "conv patch": (
        {"stem": "conv", "stem_widths": (8, 768), "patch_size": 8},
        "vision_cfg.patch_size=8",
        "exactly 4",
    ),
    "merge patch": (
        {"stem": "patch_merge", "stem_widths": (8, 8, 768), "patch_size": 14},
        "vision_cfg.patch_size=14",
        "a multiple of 4",
    ),
    "stem image": (
        {"stem": "conv", "stem_widths": (8, 768), "patch_size": 4, "image_size": 30},
        "vision_cfg.image_size=30",
        "multiple of model.vision_cfg.patch_size=4",
    ),
}


@pytest.mark.parametrize("rule", VISION_RULES)
def test_an_impossible_image_tower_is_refused(rule):
    options, *phrases = VISION_RULES[rule]
    with pytest.raises(ConfigError) as error:
        build(VisionConfig, options, path="vision_cfg")
    assert all(phrase in str(error.value) for phrase in phrases) and "\n" not in str(error.value)


def test_the_neighbours_of_impossible_towers_are_possible():
    """Each rule refuses no more than it says."""
    VisionConfig(width=128, head_width=64)
    VisionConfig(image_size=16, patch_size=16, layers=1)
    VisionConfig(class_token=False, pool_type="map")
    VisionConfig(pos_embed_type="sin_cos_2d")
    VisionConfig(modality_channels=(2,), fusion="channels")
    VisionConfig(stem="conv", stem_widths=(8, 768), patch_size=4)
    VisionConfig(stem="patch_merge", stem_widths=(8, 8, 768), patch_size=16)
    VisionConfig(image_size=225)  # a bare patch stem does not see the last pixel


@pytest.mark.parametrize(
    ("options", "phrase"),
    [({"width": 100, "heads": 8}, r"text_cfg\.heads=8.*text_cfg\.width=100"), ({"layers": -1}, r"text_cfg\.layers=-1")],
)
def test_an_impossible_text_tower_is_refused(options, phrase):
    with pytest.raises(ConfigError, match=phrase):
        build(TextConfig, options, path="text_cfg")


@pytest.mark.parametrize(("tower", "kind"), [("vision_cfg", VisionConfig), ("text_cfg", TextConfig)])
def test_a_tower_without_projection_has_the_width_of_the_joint_space(tower, kind):
    with pytest.raises(ConfigError, match=rf"{tower}\.proj_type='none'.*{tower}\.width=768.*embed_dim=512"):
        ClipConfig(**{tower: kind(width=768, proj_type="none")})
    ClipConfig(**{tower: kind(width=512, proj_type="none")})


@pytest.mark.parametrize("pool, key", [("mean", "pad_id"), ("eos", "eos_id")])
def test_pooling_that_needs_a_token_says_so(pool, key):
    config = clip_models.config(text={"pool_type": pool, key: None})
    with pytest.raises(ConfigError, match=rf"text_cfg\.{key}=None.*tokenizer"):
        clip_models.split(config)


def test_what_is_open_comes_from_the_tokenizer():
    text = with_tokenizer(config_of("scenes-tiny"), tokenizer()).text_cfg
    assert (text.vocab_size, text.pad_id, text.eos_id) == (50, 0, 2)


def test_nothing_but_the_open_facts_changes():
    before = config_of("scenes-tiny")
    after = with_tokenizer(before, tokenizer())
    text = dataclasses.replace(after.text_cfg, vocab_size=None, pad_id=None, eos_id=None)
    assert dataclasses.replace(after, text_cfg=text) == before


def test_a_model_may_have_more_tokens_and_places_than_the_tokenizer():
    config = ClipConfig(text_cfg=TextConfig(vocab_size=64, context_length=30))
    text = with_tokenizer(config, tokenizer()).text_cfg
    assert (text.vocab_size, text.context_length) == (64, 30)


@pytest.mark.parametrize(
    ("facts", "phrase"),
    [
        ({"vocab_size": 65}, r"text_cfg\.vocab_size=64.*65"),
        ({"context_length": 31}, r"text_cfg\.context_length=30.*31"),
        ({"pad_id": 1}, r"text_cfg\.pad_id=0.*1"),
        ({"eos_id": 3}, r"text_cfg\.eos_id=2.*3"),
    ],
)
def test_a_tokenizer_that_disagrees_is_refused(facts, phrase):
    config = ClipConfig(text_cfg=TextConfig(vocab_size=64, context_length=30, pad_id=0, eos_id=2))
    assert with_tokenizer(config, tokenizer(vocab_size=64, context_length=30)) == config
    with pytest.raises(ConfigError, match=phrase):
        with_tokenizer(config, tokenizer(**facts))


def test_the_schema_is_read_without_jax():
    code = (
        "import sys, mmjax.models.presets as p; p.load('ViT-B-16'); "
        "print([m for m in ('jax', 'flax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
