"""What is exported comes back bit for bit, and what a layout cannot express is refused by name."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from mmjax.core.config import ConfigError
from mmjax.core.state import flatten
from mmjax.experiment import Experiment
from mmjax.models.clip import Clip
from mmjax.models.config import ClipConfig, TextConfig, VisionConfig
from mmjax.models.joint_config import DecoderConfig
from mmjax.models.lora import merge_adapters
from mmjax.weights.export.folders import FORMATS, Adapters, Exported
from mmjax.weights.export.peft import write_peft
from mmjax.weights.layouts.hugging_face_config import read_config
from mmjax.weights.open_pretrained import open_pretrained
from mmjax.weights.open_tensors import open_tensors
from mmjax.weights.tensors import WeightsError
from support import tiny

VISION = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "head_width": 12, "mlp_ratio": 2.5}
TEXT = {"context_length": 12, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2}
HALF = (0.5, 0.5, 0.5)
SIGLIP_TEXT = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "tokenizer_clean": "canonicalize"}
SIGLIP_VISION = {
    "class_token": False, "no_ln_pre": True, "patch_bias": True, "pool_type": "map", "proj_type": "none",
    "image_mean": HALF, "image_std": HALF, "image_resize": "squash",
}  # fmt: skip
AVERAGED = {"pool_type": "avg", "proj_type": "linear", "proj_bias": True}
GOOGLE = {"activation": "gelu_tanh", "ln_eps": 1e-6}


def clip(*, embed_dim=24, bias=None, vision=None, text=None, **both):
    return ClipConfig(
        embed_dim=embed_dim,
        init_logit_bias=bias,
        init_logit_scale=math.log(10.0) if bias else math.log(1 / 0.07),
        vision_cfg=VisionConfig(**VISION, **(vision or {}), **both),
        text_cfg=TextConfig(**TEXT, **(text or {}), **both),
    )


def siglip(**both):
    return clip(embed_dim=48, bias=-10.0, vision=SIGLIP_VISION, text=SIGLIP_TEXT, **GOOGLE, **both)


def coca():
    vision = {"attentional_pool": "shared", "attn_pooler_queries": 5}
    text = {"embed_cls": True, "final_ln_after_pool": True, "pad_id": 0}
    return dataclasses.replace(
        clip(embed_dim=32, vision=vision, text=text), decoder=DecoderConfig(width=32, heads=4, layers=2)
    )


def random_params(config):
    shapes = flatten(nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: Clip(config, rngs=nnx.Rngs(0))))[1]))
    numbers = np.random.default_rng(0)
    return {path: np.asarray(numbers.normal(size=leaf.shape), np.float32) for path, leaf in shapes.items()}


def export(config, folder, *, format, params=None, **keys):
    params = random_params(config) if params is None else params
    model = Exported(config=config, params=params, tokenizer=None, card="", recipe={}, **keys)
    folder.mkdir(exist_ok=True)
    FORMATS[format](model, folder)
    return params


def targets(params):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {path: jax.ShapeDtypeStruct(array.shape, np.float32, sharding=sharding) for path, array in params.items()}


def spec_of(folder, format):
    return str(folder / "model.npz" if format == "big_vision" else folder)


@pytest.mark.parametrize(
    ("format", "config"),
    [
        ("hf", clip()),
        ("hf", clip(activation="quick_gelu")),
        ("hf", siglip()),
        ("open_clip", clip()),
        ("open_clip", clip(activation="quick_gelu")),
        ("open_clip", clip(activation="gelu_tanh", ln_eps=1e-6)),
        ("open_clip", clip(bias=-10.0, vision={"pool_type": "avg", "no_ln_pre": True}, text={"no_causal_mask": True})),
        ("open_clip", coca()),
        ("big_vision", siglip()),
        ("big_vision", clip(**GOOGLE, vision=SIGLIP_VISION | AVERAGED, text=SIGLIP_TEXT)),
    ],
)  # fmt: skip
def test_a_model_comes_back_bit_for_bit(tmp_path, format, config):
    params = export(config, tmp_path, format=format)
    pretrained = open_pretrained(spec_of(tmp_path, format))
    back = dataclasses.replace(
        config, init_logit_scale=pretrained.config.init_logit_scale, vision_cfg=pretrained.config.vision_cfg
    )
    pretrained.check(back, ["visual", "text"])
    differences = {
        field.name: (getattr(config.vision_cfg, field.name), getattr(pretrained.config.vision_cfg, field.name))
        for field in dataclasses.fields(VisionConfig)
        if getattr(config.vision_cfg, field.name) != getattr(pretrained.config.vision_cfg, field.name)
    }
    assert not differences.keys() - {"image_mean", "image_std", "image_resize"}
    loaded = pretrained.read(config, targets(params))
    assert not loaded.missing and not loaded.unused
    for path, array in params.items():
        np.testing.assert_array_equal(np.asarray(loaded.params[path]), array, err_msg=path)


def test_a_class_token_of_big_vision_holds_its_position(tmp_path):
    config = clip(**GOOGLE, text=SIGLIP_TEXT, vision={"patch_bias": True, "no_ln_pre": True, "proj_bias": True})
    params = export(config, tmp_path, format="big_vision")
    loaded = open_pretrained(spec_of(tmp_path, "big_vision")).read(config, targets(params)).params
    first = np.asarray(loaded["visual/cls"]) + np.asarray(loaded["visual/pos_embed"])[0]
    np.testing.assert_allclose(first, params["visual/cls"] + params["visual/pos_embed"][0], rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(loaded["visual/pos_embed"])[1:], params["visual/pos_embed"][1:])


def test_half_precision_files_are_read_as_float32(tmp_path):
    params = export(clip(), tmp_path, format="hf", dtype="bfloat16")
    loaded = open_pretrained(str(tmp_path)).read(clip(), targets(params)).params
    for path, array in params.items():
        assert loaded[path].dtype == np.float32
        np.testing.assert_allclose(np.asarray(loaded[path]), array, rtol=2**-8, atol=1e-6)


def test_scanned_blocks_of_big_vision_are_taken_apart(tmp_path):
    params = export(siglip(), tmp_path, format="big_vision")
    with np.load(tmp_path / "model.npz") as file:
        arrays = dict(file)
    for prefix, layers in (("params/img/Transformer", 3), ("params/txt/Encoder_0", 2)):
        for name in [name for name in arrays if name.startswith(f"{prefix}/encoderblock_0/")]:
            each = [arrays.pop(name.replace("encoderblock_0", f"encoderblock_{k}")) for k in range(layers)]
            arrays[name.replace("encoderblock_0", "encoderblock")] = np.stack(each)
    np.savez(tmp_path / "model.npz", **arrays)
    loaded = open_pretrained(str(tmp_path / "model.npz")).read(siglip(), targets(params)).params
    for path, array in params.items():
        np.testing.assert_array_equal(np.asarray(loaded[path]), array, err_msg=path)


def test_an_augreg_file_gives_the_image_tower(tmp_path):
    config = clip(**GOOGLE, text=SIGLIP_TEXT, vision={"patch_bias": True, "no_ln_pre": True})
    vision = dataclasses.replace(config.vision_cfg, proj_type="none")
    export(dataclasses.replace(config, embed_dim=48, vision_cfg=vision), tmp_path, format="big_vision")
    renamed = {
        "LayerNorm_1": "LayerNorm_2", "MlpBlock_0": "MlpBlock_3",
        "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    }  # fmt: skip
    arrays = {"head/kernel": np.zeros((48, 10)), "head/bias": np.zeros(10)}
    with np.load(tmp_path / "model.npz") as file:
        written = dict(file)
    for name, array in written.items():
        if name.startswith("params/img/"):
            pieces = name.removeprefix("params/img/").split("/")
            arrays["/".join(renamed.get(piece, piece) for piece in pieces)] = array
    positions = arrays.pop("pos_embedding")
    arrays["Transformer/posembed_input/pos_embedding"] = np.pad(positions, ((0, 0), (1, 0), (0, 0)))
    np.savez(tmp_path / "augreg.npz", **arrays)
    pretrained = open_pretrained(str(tmp_path / "augreg.npz"))
    assert pretrained.towers == ["visual"]
    target = {path: leaf for path, leaf in targets(random_params(config)).items() if path.startswith("visual/")}
    loaded = pretrained.read(config, target)
    assert loaded.missing == ["visual/proj/kernel"] and set(loaded.unused) == {"head/kernel", "head/bias"}
    query = arrays["Transformer/encoderblock_2/MultiHeadDotProductAttention_1/query/kernel"]
    np.testing.assert_array_equal(loaded.params["visual/blocks/attn/query/kernel"][2], query)


def adapters(config, *layers, rank=2):
    """Random adapters of these linear maps."""
    numbers, arrays = np.random.default_rng(1), {}
    for layer in layers:
        shape = random_params(config)[f"{layer}/kernel"].shape
        stacked, split = int("/blocks/" in layer), {"out": 2, "patch_embed": 3}.get(layer.split("/")[-1], 1)
        inputs, outputs = shape[stacked : stacked + split], shape[stacked + split :]
        arrays[f"{layer}/lora/a"] = numbers.normal(size=(*shape[:stacked], *inputs, rank)).astype(np.float32)
        arrays[f"{layer}/lora/b"] = numbers.normal(size=(*shape[:stacked], rank, *outputs)).astype(np.float32)
    return arrays


def write_adapters(config, folder, *layers):
    params = random_params(config) | adapters(config, *layers)
    model = Exported(
        config=config,
        params=params,
        tokenizer=None,
        card="",
        recipe={},
        adapters=Adapters(scale=0.5, base="hf-hub:owner/name@v1"),
    )
    folder.mkdir()
    write_peft(model, folder)
    return params


@pytest.mark.parametrize("config", [clip(), siglip()], ids=["clip", "siglip"])
def test_adapters_for_peft_add_up_to_the_merged_tensors(tmp_path, config):
    layers = (
        "visual/patch_embed",
        "visual/blocks/attn/value",
        "text/blocks/attn/out",
        "text/blocks/mlp/fc1",
        "text/proj",
    )
    params = write_adapters(config, tmp_path / "peft", *layers)
    section = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert (section["base_model_name_or_path"], section["revision"]) == ("owner/name", "v1")
    assert "base_model: owner/name\n" in (tmp_path / "peft/README.md").read_text()
    parts = open_tensors(tmp_path / "peft/adapter_model.safetensors")
    merged = merge_adapters(params, scale=0.5)
    export(config, tmp_path / "plain", format="hf", params={path: params[path] for path in merged})
    export(config, tmp_path / "merged", format="hf", params=merged)
    plain, want = (open_tensors(tmp_path / name / "model.safetensors") for name in ("plain", "merged"))
    scale, changed = section["lora_alpha"] / section["r"], set()
    for module in section["target_modules"]:
        a, b = (parts.read(f"base_model.model.{module}.lora_{letter}.weight") for letter in "AB")
        product = (b.reshape(len(b), -1) @ a.reshape(len(a), -1)).reshape(want.tensors[f"{module}.weight"].shape)
        got = plain.read(f"{module}.weight") + scale * product
        np.testing.assert_allclose(got, want.read(f"{module}.weight"), rtol=1e-5, atol=1e-5, err_msg=module)
        changed.add(f"{module}.weight")
    assert len(parts.tensors) == 2 * len(changed) == 2 * (1 + 3 + 2 + 2 + 1)
    for name in set(want.tensors) - changed:
        np.testing.assert_array_equal(plain.read(name), want.read(name), err_msg=name)


def test_adapters_that_transformers_has_no_layer_for_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match="no linear layer of its own for visual/map_head/attn/query/kernel; use --format=hf"
    ):
        write_adapters(siglip(), tmp_path / "peft", "visual/map_head/attn/query")


@pytest.mark.parametrize(
    ("format", "config", "keys"),
    [
        ("hf", clip(vision={"pool_type": "avg"}), ["vision_cfg.pool_type='avg'"]),
        ("hf", clip(text={"pool_type": "mean", "pad_id": 0}), ["text_cfg.pool_type='mean'"]),
        ("hf", clip(text={"pool_type": "eos", "eos_id": 2}), ["text_cfg.eos_id=2"]),
        ("hf", clip(vision={"registers": 2, "qk_norm": True}), ["vision_cfg.registers=2", "vision_cfg.qk_norm=True"]),
        ("open_clip", clip(vision={"class_token": False, "pool_type": "avg"}), ["vision_cfg.class_token=False"]),
        ("open_clip", siglip(), ["vit_of_another_size"]),
        ("big_vision", clip(), ["vision_cfg.activation='gelu'", "text_cfg.no_causal_mask=False"]),
    ],
)  # fmt: skip
def test_what_a_layout_cannot_express_is_refused_by_name(tmp_path, format, config, keys):
    with pytest.raises(ConfigError) as error:
        export(config, tmp_path, format=format)
    assert all(key in str(error.value) for key in keys) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def cubic_weights(size, other):
    """f64[other, size]: Keys' cubic with a = -1/2, as wide as the coarser grid, which is what antialiasing means."""
    scale = max(size / other, 1.0)
    centers = (np.arange(other) + 0.5) * size / other - 0.5
    x = np.abs(centers[:, None] - np.arange(size)) / scale
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("image_size", [16, 48])
def test_positions_are_resized_for_another_image_size(tmp_path, image_size):
    params = export(clip(), tmp_path, format="open_clip")
    other = dataclasses.replace(clip(), vision_cfg=dataclasses.replace(clip().vision_cfg, image_size=image_size))
    side, wanted = image_size // 8, targets(params)
    shape = (side**2 + 1, 48)
    wanted["visual/pos_embed"] = jax.ShapeDtypeStruct(shape, np.float32, sharding=wanted["visual/cls"].sharding)
    table = np.asarray(open_pretrained(str(tmp_path)).read(other, wanted).params["visual/pos_embed"])
    weights, square = cubic_weights(4, side), params["visual/pos_embed"][1:].reshape(4, 4, 48)
    expected = np.einsum("ai,bj,ijd->abd", weights, weights, square.astype(np.float64)).reshape(side**2, 48)
    np.testing.assert_array_equal(table[0], params["visual/pos_embed"][0])
    np.testing.assert_allclose(table[1:], expected, rtol=1e-5, atol=1e-5)


def test_ratios_that_come_to_the_same_width_are_the_same(tmp_path):
    params = export(clip(), tmp_path, format="open_clip")
    near = dataclasses.replace(clip().vision_cfg, mlp_ratio=math.nextafter(2.5, 3))
    loaded = open_pretrained(str(tmp_path)).read(dataclasses.replace(clip(), vision_cfg=near), targets(params))
    assert not loaded.missing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_cfg": {"width": 96}}, "model.vision_cfg.width=96: the weights of"),
        ({"text_cfg": {"context_length": 77}}, "model.text_cfg.context_length=77"),
        ({"text_cfg": {"vocab_size": 100}}, "model.text_cfg.vocab_size=100: the weights of"),
        ({"embed_dim": 32}, "model.embed_dim=32"),
    ],
)
def test_weights_of_another_model_are_refused_with_both_numbers(tmp_path, change, message):
    params = export(clip(), tmp_path, format="hf")
    sections = {
        k: dataclasses.replace(getattr(clip(), k), **v) if isinstance(v, dict) else v for k, v in change.items()
    }
    with pytest.raises(ConfigError, match="the weights of") as error:
        open_pretrained(str(tmp_path)).read(dataclasses.replace(clip(), **sections), targets(params))
    assert message in str(error.value)


def test_missing_tensors_are_listed_and_can_be_dropped(tmp_path):
    from safetensors.numpy import load_file

    params = export(clip(), tmp_path, format="hf")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors | {"classifier.weight": np.zeros(3)}, tmp_path / "model.safetensors")
    pretrained = open_pretrained(str(tmp_path))
    with pytest.raises(WeightsError, match=r"has no visual_projection.weight.*init.drop=\('visual/proj/kernel',\)"):
        pretrained.read(clip(), targets(params))
    loaded = pretrained.read(clip(), targets(params), drop=("visual/proj/.*",))
    assert loaded.missing == ["visual/proj/kernel"] and loaded.unused == ["classifier.weight"]


def test_siglip_2_keeps_punctuation():
    """It was trained on lower-cased texts, and has Gemma's 256,000 tokens."""
    section = {"model_type": "siglip", "text_config": {"vocab_size": 256_000}}
    assert read_config(section, path="config.json").text_cfg.tokenizer_clean == "lower"
    assert read_config({"model_type": "siglip"}, path="config.json").text_cfg.tokenizer_clean == "canonicalize"


def test_a_folder_of_big_vision_has_its_preprocessing_and_tokenizer(tmp_path):
    config = clip(**GOOGLE, vision=SIGLIP_VISION | AVERAGED | {"image_mean": (0.25, 0.5, 0.75)}, text=SIGLIP_TEXT)
    export(config, tmp_path, format="big_vision")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    for spec in (tmp_path, tmp_path / "model.npz"):
        pretrained = open_pretrained(str(spec))
        assert pretrained.config.vision_cfg == config.vision_cfg and pretrained.tokenizer == str(tmp_path)


def test_a_folder_is_not_taken_for_a_name_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no such file or folder"):
        open_pretrained("runs/mine")


def test_a_transposed_array_is_written_as_it_is(tmp_path):
    """safetensors writes memory in its order whatever the strides say, without a word."""
    params = random_params(clip())
    params["text/token_embed/embedding"] = np.asfortranarray(params["text/token_embed/embedding"])
    export(clip(), tmp_path, format="hf", params=params)
    loaded = open_pretrained(str(tmp_path)).read(clip(), targets(params)).params
    np.testing.assert_array_equal(loaded["text/token_embed/embedding"], params["text/token_embed/embedding"])


def test_a_number_is_written_without_an_axis(tmp_path):
    """transformers refuses a logit_scale of shape [1]."""
    export(clip(), tmp_path, format="hf")
    assert open_tensors(tmp_path / "model.safetensors").tensors["logit_scale"].shape == ()


def test_the_recipe_lies_beside_the_weights(tmp_path):
    export(clip(), tmp_path, format="open_clip")
    assert {path.name for path in tmp_path.iterdir()} == {
        "open_clip_config.json", "open_clip_model.safetensors", "README.md", "mmjax_config.json",
    }  # fmt: skip
    section = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert section["preprocess_cfg"]["resize_mode"] == "shortest"


@pytest.mark.parametrize(
    ("own", "clean"), [({}, "canonicalize"), ({"mmjax": {"bos": None, "eos": "e", "pad": "p"}}, None)]
)
def test_the_tokenizer_of_siglip_drops_punctuation_unless_a_run_of_ours_did_not(tmp_path, own, clean):
    export(siglip(), tmp_path, format="hf")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **own}))
    sections = tiny.sections(init=str(tmp_path), model="init", data__tokenizer__name="init")
    tokenizer = Experiment.from_dict(sections).data.tokenizer
    assert (tokenizer["name"], tokenizer.get("clean")) == (str(tmp_path), clean)
