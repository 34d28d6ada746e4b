"""Embeddings equal those of torch under the same weights, read from the files that torch's libraries write."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.core.state import flatten
from mmjax.models.clip import Clip
from mmjax.weights.export.folders import Exported, write_hugging_face, write_open_clip
from mmjax.weights.export.tensors import to_tensors
from mmjax.weights.open_pretrained import open_pretrained

torch = pytest.importorskip("torch", reason="pip install -e '.[parity]'")
transformers = pytest.importorskip("transformers")

IMAGE_SIZE, TOLERANCE = 32, 1e-5


def load(spec, *, model=None):
    """The model of ``spec`` with its weights on one device."""
    pretrained = open_pretrained(str(spec), model=model)
    graph, state = nnx.split(nnx.eval_shape(lambda: Clip(pretrained.config, rngs=nnx.Rngs(0))))
    shapes = nnx.to_pure_dict(state)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding) for path, leaf in flatten(shapes).items()
    }
    loaded = pretrained.read(pretrained.config, target)
    assert not loaded.missing and not loaded.unused
    params = jax.tree.unflatten(jax.tree.structure(shapes), [loaded.params[path] for path in target])
    return nnx.merge(graph, nnx.State(params)), pretrained


def import_open_clip():
    """open_clip, or a skip: a torchvision of another torch fails with other errors than ImportError."""
    try:
        import open_clip
    except Exception as error:
        pytest.skip(f"open_clip cannot be imported: {error}")
    return open_clip


def params_of(model):
    """Its parameters as nested dictionaries."""
    return nnx.to_pure_dict(nnx.state(model))


def pixels(config, n=3):
    """Pictures, as ours takes them and as torch does."""
    vision = config.vision_cfg
    ours = np.random.default_rng(0).integers(0, 256, (n, vision.image_size, vision.image_size, 3), np.uint8)
    theirs = (ours.astype(np.float32) / 255 - np.array(vision.image_mean, np.float32)) / np.array(
        vision.image_std, np.float32
    )
    return {"image": jnp.asarray(ours)}, torch.from_numpy(theirs.transpose(0, 3, 1, 2).copy())


def randomize(model):
    """Random numbers everywhere, also where torch starts from zeros and ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def tokens(config, *, eos, n=3):
    """Rows that end before the context does."""
    text = config.text_cfg
    ids = np.random.default_rng(1).integers(3, text.vocab_size - 3, (n, text.context_length))
    for row, end in enumerate(np.linspace(3, text.context_length - 1, n).astype(int)):
        ids[row, end] = eos
        ids[row, end + 1 :] = 0
    return ids


def clip_folder(folder, **keys):
    config = transformers.CLIPConfig(
        projection_dim=24,
        text_config={
            "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
            "vocab_size": 99, "max_position_embeddings": 12, "projection_dim": 24, "eos_token_id": 98, **keys,
        },
        vision_config={
            "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": IMAGE_SIZE, "patch_size": 8, "projection_dim": 24,
            **{key: value for key, value in keys.items() if key == "hidden_act"},
        },
    )  # fmt: skip
    model = randomize(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    return model


def check_embeddings(ours, theirs, images, pixel_values, ids):
    """Both sides of a model of transformers, whose embeddings have unit length."""
    with torch.no_grad():
        outputs = theirs(pixel_values=pixel_values, input_ids=torch.from_numpy(ids))
    for mine, other in (
        (ours.encode_image(images), outputs.image_embeds),
        (ours.encode_text(jnp.asarray(ids)), outputs.text_embeds),
    ):
        mine = mine / jnp.linalg.norm(mine, axis=-1, keepdims=True)
        assert np.abs(np.asarray(mine) - other.numpy()).max() <= TOLERANCE


@pytest.mark.parametrize("keys", [{}, {"hidden_act": "gelu"}, {"eos_token_id": 50}, {"eos_token_id": 2}])
def test_clip_of_transformers(tmp_path, keys):
    theirs = clip_folder(tmp_path, **keys)
    ours, pretrained = load(tmp_path)
    images, pixel_values = pixels(pretrained.config)
    eos = keys.get("eos_token_id", 98)
    ids = tokens(pretrained.config, eos=98 if eos == 2 else eos)
    check_embeddings(ours, theirs, images, pixel_values, ids)


@pytest.mark.parametrize(
    "sizes",
    [{"hidden_size": 48}, {"hidden_size": 32, "projection_size": 48}],
    ids=["SigLIP", "SigLIP 2, whose text towers are of another width"],
)
def test_siglip_of_transformers(tmp_path, sizes):
    config = transformers.SiglipConfig(
        text_config={
            "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99,
            "max_position_embeddings": 12, **sizes,
        },
        vision_config={
            "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": IMAGE_SIZE, "patch_size": 8,
        },
    )  # fmt: skip
    theirs = randomize(transformers.SiglipModel(config))
    theirs.save_pretrained(tmp_path)
    ours, pretrained = load(tmp_path)
    images, pixel_values = pixels(pretrained.config)
    ids = tokens(pretrained.config, eos=1)
    check_embeddings(ours, theirs, images, pixel_values, ids)
    scale, bias = ours.logit_scale[...], ours.logit_bias[...]
    assert (float(scale), float(bias)) == (theirs.logit_scale.item(), theirs.logit_bias.item())


def open_clip_folder(folder, section):
    """A folder as open_clip saves a model for the hub."""
    open_clip = import_open_clip()
    from safetensors.torch import save_file

    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": section, "preprocess_cfg": {}}))
    custom = section.get("custom_text") or "timm_model_name" in section["vision_cfg"]
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    kind = open_clip.CoCa if "multimodal_cfg" in section else kind
    model = kind(**{key: value for key, value in section.items() if key != "custom_text"})
    for name, parameter in model.named_parameters():
        if name.endswith(
            ("_proj_weight", "in_proj_bias", "text_projection")
        ):  # which open_clip leaves as the memory was
            torch.nn.init.normal_(parameter, std=0.1)
    randomize(model)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model


PLAIN = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": IMAGE_SIZE, "layers": 3, "width": 64, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2},
}


@pytest.mark.parametrize(
    "section",
    [PLAIN, PLAIN | {"quick_gelu": True}, PLAIN | {"custom_text": True}],
    ids=["gelu", "quick_gelu", "custom_text"],
)
def test_open_clip(tmp_path, section):
    theirs = open_clip_folder(tmp_path, section)
    ours, pretrained = load(tmp_path)
    images, pixel_values = pixels(pretrained.config)
    ids = tokens(pretrained.config, eos=98)
    with torch.no_grad():
        pairs = (
            (ours.encode_image(images), theirs.encode_image(pixel_values)),
            (ours.encode_text(jnp.asarray(ids)), theirs.encode_text(torch.from_numpy(ids))),
        )
    for mine, other in pairs:
        assert np.abs(np.asarray(mine) - other.numpy()).max() <= TOLERANCE


COCA = {
    "embed_dim": 32,
    "vision_cfg": PLAIN["vision_cfg"]
    | {"attentional_pool": True, "attn_pooler_queries": 6, "attn_pooler_heads": 4, "output_tokens": True},
    "text_cfg": PLAIN["text_cfg"] | {"embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 12, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2},
    "custom_text": True,
}


@pytest.mark.parametrize("width", [64, 32], ids=["pooler of another width", "pooler as wide as the tower"])
def test_coca_of_open_clip(tmp_path, width):
    """Both embeddings and the decoder's logits."""
    section = COCA | {"vision_cfg": COCA["vision_cfg"] | {"width": width}}
    theirs = open_clip_folder(tmp_path, section)
    ours, pretrained = load(tmp_path)
    images, pixel_values = pixels(pretrained.config)
    ids = tokens(pretrained.config, eos=98)
    with torch.no_grad():
        other = theirs(pixel_values, torch.from_numpy(ids))
    image = ours.visual.run(ours.visual.embed(images), with_sequence=True)
    text = ours.text.run(ours.text.embed(jnp.asarray(ids)), jnp.asarray(ids), with_sequence=True)
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    logits = ours.decoder.logits(ours.decoder(image.sequence, text.sequence, jnp.asarray(ids)))
    for mine, name in (
        (unit(ours.visual.project(image.pooled)), "image_features"),
        (unit(ours.text.project(text.pooled)), "text_features"),
        (logits, "logits"),
    ):
        expected = other[name][:, : mine.shape[1]].numpy()  # the last word has nothing to predict
        assert np.abs(np.asarray(mine) - expected).max() <= TOLERANCE * max(1, np.abs(expected).max()), name
    write(pretrained, ours, tmp_path / "ours", write_open_clip)
    import_open_clip().create_model_and_transforms(f"local-dir:{tmp_path / 'ours'}")


def write(pretrained, model, folder, writer):
    """Exports a loaded model."""
    params = {path: np.asarray(leaf) for path, leaf in flatten(nnx.to_pure_dict(nnx.split(model)[1])).items()}
    folder.mkdir()
    writer(Exported(config=pretrained.config, params=params, tokenizer=None, card="", recipe={}), folder)


def test_what_is_exported_embeds_the_same_in_transformers(tmp_path):
    first = clip_folder(tmp_path / "theirs")
    ours, pretrained = load(tmp_path / "theirs")
    write(pretrained, ours, tmp_path / "ours", write_hugging_face)
    second = transformers.CLIPModel.from_pretrained(tmp_path / "ours").eval()
    _, pixel_values = pixels(pretrained.config)
    ids = torch.from_numpy(tokens(pretrained.config, eos=98))
    with torch.no_grad():
        before, after = (model(pixel_values=pixel_values, input_ids=ids) for model in (first, second))
    assert torch.equal(before.image_embeds, after.image_embeds) and torch.equal(before.text_embeds, after.text_embeds)
    transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")


def test_what_is_exported_embeds_the_same_in_open_clip(tmp_path):
    open_clip = import_open_clip()
    (tmp_path / "theirs").mkdir()
    first = open_clip_folder(tmp_path / "theirs", PLAIN)
    ours, pretrained = load(tmp_path / "theirs")
    write(pretrained, ours, tmp_path / "ours", write_open_clip)
    second, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'ours'}")
    assert preprocess is not None
    _, pixel_values = pixels(pretrained.config)
    ids = torch.from_numpy(tokens(pretrained.config, eos=98))
    with torch.no_grad():
        assert torch.equal(first.encode_image(pixel_values), second.eval().encode_image(pixel_values))
        assert torch.equal(first.encode_text(ids), second.encode_text(ids))


def infonce(graph, params, images, ids):
    """The loss of a model as a function of its parameters."""
    model = nnx.merge(graph, nnx.State(params))
    z = [model.encode_image(images), model.encode_text(jnp.asarray(ids))]
    a, b = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in z)
    logits = jnp.exp(model.logit_scale[...]) * a @ b.T
    both = (jax.nn.log_softmax(logits, axis=axis) for axis in (0, 1))
    return -sum(jnp.mean(jnp.diagonal(x)) for x in both) / 2


def test_gradients_of_infonce_equal_open_clips(tmp_path):
    open_clip = import_open_clip()
    theirs = open_clip_folder(tmp_path, PLAIN)
    ours, pretrained = load(tmp_path)
    images, pixel_values = pixels(pretrained.config, n=6)
    ids = tokens(pretrained.config, eos=98, n=6)
    features = theirs(pixel_values, torch.from_numpy(ids))
    open_clip.loss.ClipLoss()(*features).backward()
    graph, state = nnx.split(ours)
    gradients = flatten(jax.grad(infonce, argnums=1)(graph, nnx.to_pure_dict(state), images, ids))
    gradients = {path: np.asarray(leaf) for path, leaf in gradients.items()}
    mine = to_tensors(gradients, pretrained.rules)
    for name, parameter in theirs.named_parameters():
        other = parameter.grad.numpy()
        scale = max(np.abs(other).max(), 1e-6)
        assert np.abs(mine[name].reshape(other.shape) - other).max() <= 1e-4 * scale, name
