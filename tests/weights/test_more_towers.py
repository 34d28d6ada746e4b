"""Towers that open_clip takes from timm and transformers, and ResNets: weights read and written, and embeddings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import named_towers, open_clip_json
from mmjax.weights.export.folders import write_big_vision
from mmjax.weights.export.open_clip_config import write_model_cfg
from mmjax.weights.export.tensors import to_tensors
from mmjax.weights.layouts import open_clip as open_clip_layout
from mmjax.weights.open_pretrained import open_pretrained
from support import clip_models

CLIP_TEXT = {"context_length": 12, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2}
CLIP_VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 16}


SIGLIP_TEXT = CLIP_TEXT | {
    "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
}  # fmt: skip


def timm_file(name, pool="token", *, proj=None, size=224, **keys):
    vision = {"image_size": size, "timm_model_name": name, "timm_pool": pool, "timm_proj": proj}
    return {"embed_dim": 24, "vision_cfg": vision, "text_cfg": CLIP_TEXT, "custom_text": True} | keys


def hf_file(name, pooler, proj, *, embed_dim=24):
    text = {"hf_model_name": name, "hf_pooler_type": pooler, "hf_proj_type": proj, "context_length": 12}
    return {"embed_dim": embed_dim, "vision_cfg": CLIP_VISION, "text_cfg": text, "custom_text": True}


FILES = {
    "EVA01": timm_file("eva_giant_patch14_224"),
    "EVA02": timm_file("eva02_base_patch16_clip_224"),
    "EVA02-E": timm_file("eva02_enormous_patch14_clip_224"),
    "PE-Core": timm_file("vit_pe_core_tiny_patch16_384", "map", size=384),
    "PE-Core without a class token": timm_file("vit_pe_core_gigantic_patch14_448", "map", size=448),
    "MobileCLIP-B": timm_file("vit_base_mci_224"),
    "MobileCLIP2-L": timm_file("vit_large_patch14_clip_224"),
    "SigLIP 2": timm_file(
        "vit_base_patch16_siglip_224", "map", proj="none", embed_dim=768, text_cfg=SIGLIP_TEXT, init_logit_bias=-10
    ),
    "gap": timm_file("vit_medium_patch16_gap_256", "avg", proj="linear", size=256),
    "ResNet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [2, 1, 1, 1], "width": 64, "patch_size": None},
        "text_cfg": CLIP_TEXT,
    },
    "layer scales": {"embed_dim": 24, "vision_cfg": CLIP_VISION | {"ls_init_value": 0.1}, "text_cfg": CLIP_TEXT},
    "norms inside": {
        "embed_dim": 24, "text_cfg": CLIP_TEXT,
        "vision_cfg": CLIP_VISION | {"scale_fc": True, "scale_attn_inner": True},
    },
    "RoBERTa": hf_file("roberta-base", "mean_pooler", "mlp"),
    "BERT": hf_file("bert-base-uncased", "cls_pooler", "linear"),
    "BERT without a projection": hf_file("bert-base-uncased", "cls_last_hidden_state_pooler", None, embed_dim=768),
    "DistilBERT": hf_file("distilbert-base-uncased", "cls_last_hidden_state_pooler", "linear"),
}  # fmt: skip
LARGE = {"EVA01", "EVA02-E", "PE-Core without a class token", "MobileCLIP2-L", "BERT without a projection"}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_written_as_it_was_read(name):
    config = open_clip_json.convert(FILES[name])
    assert open_clip_json.convert(write_model_cfg(config, has_tokenizer=False)) == config


@pytest.mark.parametrize("name", FILES)
def test_every_parameter_has_one_tensor(name):
    config = open_clip_json.convert(FILES[name])
    _, shapes = clip_models.split(config)
    paths = [path.replace(".", "/") for path in clip_models.flat(shapes)]
    held = [path for rule in open_clip_layout.rules(config, text_prefix="text.") for path in rule.ours]
    assert sorted(held) == sorted(paths)


@pytest.fixture
def two_layers(monkeypatch):
    """The same towers with two blocks, in open_clip and here; their sizes need no hub."""
    pytest.importorskip("torch", reason="pip install -e '.[parity]'")
    timm, transformers = pytest.importorskip("timm"), pytest.importorskip("transformers")
    open_clip = pytest.importorskip("open_clip")
    create = timm.create_model

    def create_two_layers(name, **options):
        # SigLIP was trained with the tanh form, which transformers and big_vision run; timm takes exact GELU.
        activation = {"act_layer": "gelu_tanh"} if "siglip" in name else {}
        return create(name, depth=2, **activation, **options)

    monkeypatch.setattr(timm, "create_model", create_two_layers)
    for name, (pool, sizes) in named_towers._TIMM.items():
        monkeypatch.setitem(named_towers._TIMM, name, (pool, sizes | {"layers": 2}))
    for name, sizes in named_towers._SIGLIP_SIZES.items():
        monkeypatch.setitem(named_towers._SIGLIP_SIZES, name, sizes | {"layers": 2})
    for name, sizes in named_towers._HF.items():
        monkeypatch.setitem(named_towers._HF, name, sizes | {"layers": 2, "vocab_size": 99})
    two, roberta = {"num_hidden_layers": 2, "vocab_size": 99}, {"max_position_embeddings": 514, "pad_token_id": 1}
    configs = {
        "roberta-base": transformers.RobertaConfig(**two, **roberta, type_vocab_size=1, layer_norm_eps=1e-5),
        "bert-base-uncased": transformers.BertConfig(**two),
        "distilbert-base-uncased": transformers.DistilBertConfig(n_layers=2, vocab_size=99),
    }
    model = open_clip.hf_model
    monkeypatch.setattr(model.AutoConfig, "from_pretrained", configs.__getitem__)
    monkeypatch.setitem(model.arch_dict, "distilbert", {"config_names": {"width": "dim"}, "pooler": "mean_pooler"})
    build = transformers.AutoModel.from_config

    def from_config(config, **options):
        return build(config, **({} if config.model_type == "distilbert" else options))

    monkeypatch.setattr(model.AutoModel, "from_config", from_config)


def both_models(folder, name, *, n=3):
    """Theirs with random weights, ours with the same, and what both read."""
    from weights import test_parity as parity

    section = FILES[name]
    if "hf_model_name" in section["text_cfg"]:
        section = section | {"text_cfg": section["text_cfg"] | {"hf_model_pretrained": False}}
    theirs = parity.open_clip_folder(folder, section)
    ours, pretrained = parity.load(folder)
    images, pixel_values = parity.pixels(pretrained.config, n=n)
    text = pretrained.config.text_cfg
    ids = parity.tokens(pretrained.config, eos=text.vocab_size - 1, n=n)
    if text.pad_id:
        ids[ids == 0] = text.pad_id
    return theirs, (ours, pretrained), images, pixel_values, ids


@pytest.mark.parametrize("name", [name for name in FILES if name not in LARGE])
def test_embeddings_are_open_clips(two_layers, tmp_path, name):
    import torch

    from weights import test_parity as parity

    theirs, (ours, pretrained), images, pixel_values, ids = both_models(tmp_path, name)
    with torch.no_grad():
        pairs = (
            (ours.encode_image(images), theirs.encode_image(pixel_values)),
            (ours.encode_text(jnp.asarray(ids)), theirs.encode_text(torch.from_numpy(ids))),
        )
    for mine, other in pairs:
        mine, other = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (np.asarray(mine), other.numpy()))
        assert np.abs(mine - other).max() <= parity.TOLERANCE
    params = {path.replace(".", "/"): np.asarray(v) for path, v in clip_models.flat(parity.params_of(ours)).items()}
    written = to_tensors(params, open_clip_layout.rules(pretrained.config, text_prefix="text."))
    state = theirs.state_dict()
    for key, tensor in written.items():
        tensor, original = np.asarray(tensor), state[key if key in state else key.removeprefix("text.")].numpy()
        assert np.array_equal(tensor.reshape(original.shape), original), key


@pytest.mark.parametrize("name", [name for name in FILES if name not in LARGE])
def test_gradients_of_infonce_are_open_clips_in_double_precision(two_layers, tmp_path, monkeypatch, name):
    """In single precision a ResNet's are 1 % off either way: its ReLUs flip where sums are rounded differently."""
    import open_clip
    import torch

    from weights import test_parity as parity

    theirs, (ours, pretrained), images, _, ids = both_models(tmp_path, name)
    vision, params = pretrained.config.vision_cfg, jax.tree.map(np.float64, parity.params_of(ours))
    pixels = (np.float64(images["image"]) / 255 - np.float32(vision.image_mean)) / np.float32(vision.image_std)
    pixel_values = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    open_clip.loss.ClipLoss()(*theirs.double()(pixel_values, torch.from_numpy(ids))[:3]).backward()
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        monkeypatch.setattr(jnp, "float32", jnp.float64)  # norms and softmax are float32 whatever the model's dtype
        graph, _ = clip_models.split(pretrained.config, dtype=jnp.float64)
        gradients = clip_models.flat(jax.grad(parity.infonce, argnums=1)(graph, params, images, ids))
        gradients = {path.replace(".", "/"): np.asarray(leaf) for path, leaf in gradients.items()}
    mine = to_tensors(gradients, open_clip_layout.rules(pretrained.config, text_prefix="text."))
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    compared = 0
    for key, parameter in theirs.named_parameters():
        key = key if key in mine else f"text.{key}"
        if parameter.grad is not None and key in mine:
            other = parameter.grad.numpy()
            bound = 1e-6 * max(np.abs(other).max(), 1e-4 * largest)
            assert np.abs(mine[key].reshape(other.shape) - other).max() <= bound, key
            compared += 1
    assert compared >= 30


BERTS = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    "roberta": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 20, "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
    },
    "xlm-roberta": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 20, "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
    },
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
}  # fmt: skip


@pytest.mark.parametrize("head", ["", "ForMaskedLM"])
@pytest.mark.parametrize("kind", BERTS)
def test_berts_alone_come_from_a_folder_of_transformers(tmp_path, kind, head):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from weights import test_parity as parity

    base = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "distilbert": "DistilBert"}[kind]
    config = getattr(transformers, f"{base}Config")(vocab_size=99, **BERTS[kind])
    theirs = parity.randomize(getattr(transformers, base + (head or "Model"))(config))
    theirs.save_pretrained(tmp_path)
    pretrained = open_pretrained(str(tmp_path))
    text = dataclasses.replace(pretrained.config.text_cfg, proj_type="none", context_length=12)
    model = dataclasses.replace(pretrained.config, text_cfg=text, embed_dim=32)
    graph, shapes = clip_models.split(model)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {
        path.replace(".", "/"): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        for path, leaf in clip_models.flat(shapes).items()
        if path.startswith("text.")
    }
    loaded = pretrained.read(model, target)
    assert not loaded.missing
    random = clip_models.random_params(shapes)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: loaded.params.get(jax.tree_util.keystr(path, simple=True, separator="/"), leaf), random
    )
    pad = text.pad_id
    ids = np.array([[5, 6, 7, 8, 9, pad, pad, pad], [9, 8, 4, 3, 11, 12, 13, 14]])
    with torch.no_grad():
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy((ids != pad).astype(int))}
        inner = getattr(theirs, kind.removeprefix("xlm-")) if head else theirs
        tokens = inner(**inputs).last_hidden_state.numpy()
    expected = tokens[:, 0] if "roberta" not in kind else np.stack([tokens[0, :5].mean(0), tokens[1].mean(0)])
    got = np.asarray(clip_models.model(graph, params).encode_text(jnp.asarray(ids)))
    assert np.abs(got - expected).max() <= parity.TOLERANCE


def test_open_clips_own_reader_takes_our_files_of_big_vision(two_layers, tmp_path):
    import torch
    from open_clip.convert import load_big_vision_weights

    from weights import test_parity as parity

    theirs, (ours, pretrained), images, pixel_values, ids = both_models(tmp_path, "SigLIP 2")
    with torch.no_grad():
        expected = [theirs.encode_image(pixel_values), theirs.encode_text(torch.from_numpy(ids))]
        for parameter in theirs.parameters():
            parameter.zero_()
    parity.write(pretrained, ours, tmp_path / "big_vision", write_big_vision)
    load_big_vision_weights(theirs, tmp_path / "big_vision" / "model.npz")
    with torch.no_grad():
        got = [theirs.encode_image(pixel_values), theirs.encode_text(torch.from_numpy(ids))]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    again, _ = parity.load(tmp_path / "big_vision" / "model.npz")
    for mine, other in zip((again.encode_image(images), again.encode_text(jnp.asarray(ids))), expected, strict=True):
        assert np.abs(np.asarray(mine) - other.numpy()).max() <= parity.TOLERANCE * max(1, float(other.abs().max()))
