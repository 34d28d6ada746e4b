"""open_clip's model files, written as that project writes them."""

import copy
import json
import math
import re
from pathlib import Path

import jax
import pytest

from mmjax.core.config import ConfigError, build
from mmjax.models import presets
from mmjax.models.config import ClipConfig
from support import clip_models

VIT_B_32 = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
VIT_B_16_SIGLIP = {
    "embed_dim": 768,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 224,
        "timm_model_name": "vit_base_patch16_siglip_224",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 64,
        "vocab_size": 32000,
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 768,
        "heads": 12,
        "layers": 12,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    },
}
EVA02_B_16 = {
    "embed_dim": 512,
    "vision_cfg": {
        "image_size": 224,
        "timm_model_name": "eva02_base_patch16_clip_224",
        "timm_pool": "token",
        "timm_proj": None,
    },
    "text_cfg": VIT_B_32["text_cfg"],
    "custom_text": True,
}
RN50 = {
    "embed_dim": 1024,
    "vision_cfg": {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None},
    "text_cfg": VIT_B_32["text_cfg"],
}
ROBERTA = VIT_B_32 | {
    "text_cfg": {"hf_model_name": "roberta-base", "hf_tokenizer_name": "roberta-base", "hf_pooler_type": "mean_pooler"},
}


@pytest.fixture
def load(tmp_path):
    def load(section, **changes):
        """The model of a file with dotted keys (``vision_cfg__width=64``) changed."""
        section = copy.deepcopy(section)
        for key, value in changes.items():
            *parents, last = key.split("__")
            place = section
            for parent in parents:
                place = place[parent]
            place[last] = value
        path = tmp_path / "model.json"
        path.write_text(json.dumps(section))
        return build(ClipConfig, presets.load(path), path="model")

    return load


def preset(name):
    return build(ClipConfig, presets.load(name), path="model")


@pytest.mark.parametrize(("name", "section"), [("ViT-B-32", VIT_B_32), ("ViT-B-16-SigLIP", VIT_B_16_SIGLIP)])
def test_the_files_of_named_models_are_the_named_models(load, name, section):
    assert load(section) == preset(name)


def test_a_path_may_be_a_string(tmp_path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(VIT_B_32))
    assert presets.load(str(path)) == presets.load("ViT-B-32")


def test_each_number_of_a_file_arrives(load):
    config = load(
        VIT_B_32,
        embed_dim=48,
        init_logit_scale=1.5,
        vision_cfg__image_size=96,
        vision_cfg__layers=3,
        vision_cfg__width=128,
        vision_cfg__head_width=32,
        vision_cfg__patch_size=12,
        vision_cfg__mlp_ratio=3.0,
        vision_cfg__patch_dropout=0.0,
        vision_cfg__pool_type="avg",
        vision_cfg__final_ln_after_pool=True,
        vision_cfg__no_ln_pre=True,
        vision_cfg__pos_embed_type="sin_cos_2d",
        text_cfg__context_length=20,
        text_cfg__vocab_size=100,
        text_cfg__width=64,
        text_cfg__heads=4,
        text_cfg__layers=5,
        text_cfg__mlp_ratio=2.0,
        text_cfg__pool_type="first",
        text_cfg__proj_type="linear",
        text_cfg__pad_id=1,
        text_cfg__eos_id=2,
    )
    vision, text = config.vision_cfg, config.text_cfg
    assert (config.embed_dim, config.init_logit_scale, config.init_logit_bias) == (48, 1.5, None)
    assert (vision.image_size, vision.layers, vision.width, vision.head_width) == (96, 3, 128, 32)
    assert (vision.patch_size, vision.mlp_ratio) == (12, 3.0)
    assert (vision.pool_type, vision.final_ln_after_pool, vision.no_ln_pre) == ("avg", True, True)
    assert vision.pos_embed_type == "sin_cos_2d"
    assert (text.context_length, text.vocab_size, text.width, text.heads, text.layers) == (20, 100, 64, 4, 5)
    assert (text.mlp_ratio, text.pool_type, text.pad_id, text.eos_id) == (2.0, "first", 1, 2)


def test_quick_gelu_reaches_both_towers(load):
    config = load(VIT_B_32, quick_gelu=True)
    assert config.vision_cfg.activation == config.text_cfg.activation == "quick_gelu"
    config = load(VIT_B_32, quick_gelu=False)
    assert config.vision_cfg.activation == config.text_cfg.activation == "gelu"


def test_text_towers_beside_timms_have_the_activation_that_their_weights_were_trained_with(load):
    assert load(VIT_B_16_SIGLIP, text_cfg__act_kwargs=None) == preset("ViT-B-16-SigLIP")


def test_activation_and_norm_of_one_tower_are_its_own(load):
    config = load(VIT_B_32, vision_cfg__act_kwargs={"approximate": "tanh"}, text_cfg__norm_kwargs={"eps": 1e-3})
    assert (config.vision_cfg.activation, config.text_cfg.activation) == ("gelu_tanh", "gelu")
    assert (config.vision_cfg.ln_eps, config.text_cfg.ln_eps) == (1e-5, 1e-3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_base_patch16_siglip_384", (384, 16, 768, 12, 12, 3072)),
        ("vit_large_patch16_siglip_256", (256, 16, 1024, 24, 16, 4096)),
        ("vit_so400m_patch14_siglip_224", (224, 14, 1152, 27, 16, 4304)),
        ("vit_giantopt_patch16_siglip_256", (256, 16, 1536, 40, 16, 6144)),
    ],
)
def test_siglips_other_sizes(load, name, expected):
    changes = {"vision_cfg__timm_model_name": name, "embed_dim": expected[2], "text_cfg__width": 768}
    section = copy.deepcopy(VIT_B_16_SIGLIP)
    del section["vision_cfg"]["image_size"]  # the name has it too
    vision = load(section, **changes).vision_cfg
    hidden = int(vision.width * vision.mlp_ratio)
    assert (vision.image_size, vision.patch_size, vision.width, vision.layers, vision.heads, hidden) == expected
    assert vision.pool_type == "map" and not vision.class_token


def test_a_logit_bias_brings_the_scale_of_the_sigmoid_loss_unless_the_file_names_one(load):
    assert load(VIT_B_32, init_logit_bias=-10).init_logit_scale == pytest.approx(math.log(10))
    assert load(VIT_B_32, init_logit_bias=-10, init_logit_scale=2.0).init_logit_scale == 2.0
    assert load(VIT_B_32).init_logit_scale == pytest.approx(math.log(1 / 0.07))


HARMLESS = {
    "custom_text": True,
    "vision_cfg__ls_init_value": None,
    "vision_cfg__attentional_pool": False,
    "vision_cfg__timm_drop": 0.0,
    "text_cfg__embed_cls": False,
    "text_cfg__hf_proj_type": "mlp",  # without hf_model_name it shapes nothing
}


@pytest.mark.parametrize("key", HARMLESS)
def test_a_key_with_the_value_that_switches_it_off_is_harmless(load, key):
    if key == "vision_cfg__timm_drop":
        assert load(VIT_B_16_SIGLIP, **{key: HARMLESS[key]}) == preset("ViT-B-16-SigLIP")
    else:
        assert load(VIT_B_32, **{key: HARMLESS[key]}) == preset("ViT-B-32")


REFUSED = {
    "a part that is not built": (VIT_B_32, "vision_cfg__scale_heads", True),
    "attentional pooling of another kind": (VIT_B_32, "vision_cfg__attentional_pool", "serial"),
    "patches of a resnet": (RN50, "vision_cfg__patch_size", 16),
    "an unknown text tower of transformers": (ROBERTA, "text_cfg__hf_model_name", "google/mt5-base"),
    "another pooler of transformers": (ROBERTA, "text_cfg__hf_pooler_type", "max_pooler"),
    "a projection that open_clip does not build": (ROBERTA, "text_cfg__hf_proj_type", None),
    "a captioning model": (ROBERTA, "text_cfg__output_tokens", True),
    "another activation": (VIT_B_32, "text_cfg__act_kwargs", {"inplace": True}),
    "another approximation": (VIT_B_32, "vision_cfg__act_kwargs", {"approximate": "cubic"}),
    "another norm": (VIT_B_32, "vision_cfg__norm_kwargs", {"eps": 1e-6, "bias": False}),
    "another timm model": (VIT_B_16_SIGLIP, "vision_cfg__timm_model_name", "convnext_base"),
    "another timm pool": (VIT_B_16_SIGLIP, "vision_cfg__timm_pool", "avg"),
    "another timm projection": (VIT_B_16_SIGLIP, "vision_cfg__timm_proj", "mlp"),
    "pooling of another timm model": (EVA02_B_16, "vision_cfg__timm_pool", "avg"),
    "timm dropout": (VIT_B_16_SIGLIP, "vision_cfg__timm_drop", 0.1),
    "timm key of another tower": (VIT_B_32, "vision_cfg__timm_pool", "map"),
    "a key of nobody": (VIT_B_32, "vision_cfg__colour", "red"),
    "a decoder on patches": (VIT_B_32, "multimodal_cfg", {"width": 512}),
    "a top key of nobody": (VIT_B_32, "audio_cfg", {"width": 512}),
    "a pooling of nobody": (VIT_B_32, "text_cfg__pool_type", "median"),
    "a tokenizer setting": (VIT_B_32, "text_cfg__tokenizer_kwargs", {"strip": True}),
    "a number in quotes": (VIT_B_32, "embed_dim", "512"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_key_that_cannot_be_honoured_is_refused_by_name(load, what):
    section, key, value = REFUSED[what]
    load(section)
    with pytest.raises(ConfigError) as error:
        load(section, **{key: value})
    assert key.replace("__", ".") in str(error.value)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(VIT_B_32)[:-20])
    with pytest.raises(ConfigError, match=r"model\.json"):
        presets.load(path)


def test_a_file_of_something_else_is_named(tmp_path):
    path = tmp_path / "model.json"
    path.write_text("[1, 2]")
    with pytest.raises(ConfigError, match=r"model\.json"):
        presets.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        presets.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize("tower", ["vision_cfg", "text_cfg"])
def test_a_tower_that_is_no_section_is_named(load, tower):
    with pytest.raises(ConfigError, match=tower):
        load(VIT_B_32, **{tower: 12})


def test_quick_gelu_is_not_lost_on_timm_models(load):
    """Their image tower has no such activation: a file that asks for it is refused, or its text tower has it."""
    with pytest.raises(ConfigError, match="quick_gelu"):
        section = copy.deepcopy(VIT_B_16_SIGLIP)
        del section["text_cfg"]["act_kwargs"]
        load(section, quick_gelu=True)


def named(image, pool="token", *, size=None, **more):
    """A file whose image tower is one of timm's, beside CLIP's text tower."""
    vision = {"timm_model_name": image, "timm_pool": pool, "timm_proj": None}
    vision |= {"image_size": size} if size else {}
    return VIT_B_32 | {"vision_cfg": vision} | more


def bert(name, pooler="mean_pooler", proj="mlp", *, embed_dim=512):
    tower = {"hf_model_name": name, "hf_pooler_type": pooler, "hf_proj_type": proj}
    return VIT_B_32 | {"text_cfg": tower, "embed_dim": embed_dim}


COUNTS = {  # what torch counts in open_clip's own model of the tower: parameters, and a ResNet's running statistics
    "eva_giant_patch14_224": ("visual", named("eva_giant_patch14_224"), 1_011_867_520),
    "eva02_base_patch16_clip_224": ("visual", EVA02_B_16, 86_263_040),
    "eva02_large_patch14_clip_336": ("visual", named("eva02_large_patch14_clip_336"), 304_170_432),
    "eva02_enormous_patch14_clip_224": ("visual", named("eva02_enormous_patch14_clip_224"), 4_349_638_912),
    "vit_pe_core_tiny_patch16_384": ("visual", named("vit_pe_core_tiny_patch16_384", "map"), 6_141_056),
    "vit_pe_core_base_patch16_224": ("visual", named("vit_pe_core_base_patch16_224", "map"), 93_280_256),
    "vit_pe_core_large_patch14_336": ("visual", named("vit_pe_core_large_patch14_336", "map"), 316_627_456),
    "vit_pe_core_gigantic_patch14_448": ("visual", named("vit_pe_core_gigantic_patch14_448", "map"), 1_880_853_504),
    "vit_base_mci_224": ("visual", named("vit_base_mci_224"), 86_349_824),
    "vit_large_patch14_clip_224": ("visual", named("vit_large_patch14_clip_224"), 303_704_576),
    "vit_medium_patch16_gap_256": ("visual", named("vit_medium_patch16_gap_256", ""), 38_610_944),
    "RN50": ("visual", RN50, 38_370_144),
    "roberta-base": ("text", ROBERTA, 124_874_240),
    "xlm-roberta-large": ("text", bert("xlm-roberta-large", embed_dim=1024), 560_937_984),
    "bert-base-uncased, its pooler": ("text", bert("bert-base-uncased", "cls_pooler", "linear"), 109_875_456),
    "bert-base-uncased, none": ("text", bert("bert-base-uncased", "mean_pooler", None, embed_dim=768), 108_891_648),
    "distilbert-base-uncased": (
        "text",
        bert("distilbert-base-uncased", "cls_last_hidden_state_pooler", "linear"),
        66_756_096,
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_named_towers_have_the_parameters_of_the_originals(load, name):
    tower, section, published = COUNTS[name]
    _, shapes = clip_models.split(load(section))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes[tower])) == published


def test_a_resnet_is_a_stem(load):
    vision = load(RN50).vision_cfg
    assert (vision.stem, vision.stem_layers, vision.stem_widths, vision.layers) == ("resnet", (3, 4, 6, 3), (64,), 0)
    assert (vision.width, vision.heads, vision.grid, vision.pool_type) == (2048, 32, 7, "attn")


def test_clipas_files_strip_the_separator_and_normalize_as_imagenet(load):
    config = load(VIT_B_32, text_cfg__tokenizer_kwargs={"strip_sep_token": True})
    assert config.text_cfg.tokenizer_strip_sep and config.vision_cfg.image_mean == (0.485, 0.456, 0.406)
    assert not load(VIT_B_32).text_cfg.tokenizer_strip_sep


def test_the_activation_of_text_towers_beside_other_timm_towers_is_their_own(load):
    assert load(EVA02_B_16).text_cfg.activation == "gelu"


def test_layers_that_training_would_drop_are_named(load, caplog):
    load(EVA02_B_16, vision_cfg__timm_drop_path=0.1)
    assert "timm_drop_path=0.1" in caplog.text


@pytest.mark.parametrize(
    ("pooler", "pool", "tanh"),
    [("mean_pooler", "mean", False), ("cls_pooler", "first", True), ("cls_last_hidden_state_pooler", "first", False)],
)
def test_poolers_of_transformers(load, pooler, pool, tanh):
    text = load(bert("bert-base-uncased", pooler)).text_cfg
    assert (text.pool_type, text.pool_tanh, text.proj_type) == (pool, tanh, "mlp")
    assert (text.context_length, text.num_positions, text.pad_id) == (77, 512, 0)


def test_the_documented_files_load_and_the_others_do_not():
    open_clip = pytest.importorskip("open_clip", reason="pip install -e '.[parity]'")
    folder = Path(open_clip.__file__).parent / "model_configs"
    page = (Path(__file__).parents[2] / "docs" / "open_clip_files.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `([^`]+\.json)` \| (yes|no)", page, re.MULTILINE))
    loads = {}
    for path in folder.glob("*.json"):
        try:
            presets.load(path)
            loads[path.name] = "yes"
        except ConfigError:
            loads[path.name] = "no"
    assert documented == loads
