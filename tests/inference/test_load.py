"""``mmjax.load``: what a user calls gives the numbers that evaluation measures."""

import copy
import dataclasses
import io
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file

import mmjax
from mmjax.checkpoints.manager import Checkpoints
from mmjax.core.config import ConfigError
from mmjax.data.sample import Unreadable
from mmjax.experiment import DataConfig, Experiment
from mmjax.inference import model as inference
from mmjax.models.clip import make_tower
from mmjax.runs import folder
from mmjax.runs.exporting import export_run
from mmjax.train.data import load_run_tokenizer
from mmjax.train.evaluation import make_evaluation
from mmjax.train.program import Program
from support import clip_models, pictures, towers_reference

TEXTS = ["a red circle", "a blue square left of a green ring", "a red circle", "a ring"]


@pytest.fixture(scope="module")
def run(finished_run):
    return finished_run


@pytest.fixture(scope="module")
def model(run):
    return mmjax.load(run, batch_size=16)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Photographs of several sizes and kinds, with a list of captions: a data set and a list of paths."""
    root = tmp_path_factory.mktemp("photographs")
    for i, (height, width) in enumerate([(40, 64), (64, 40), (33, 97), (32, 32), (80, 50)]):
        picture = pictures.photograph(height, width, seed=i)
        if i == 2:
            alpha = np.tile(np.linspace(0, 255, width, dtype=np.uint8), (height, 1))
            Image.fromarray(np.dstack([picture, alpha])).save(root / f"{i}.png")
        else:
            (root / f"{i}.jpg").write_bytes(pictures.encoded(picture))
    paths = sorted(root.glob("*.*g"))
    lines = [f"{path.name},{text}" for path, text in zip(paths, [*TEXTS, "a dog"], strict=True)]
    (root / "table.csv").write_text("\n".join(["image,caption", *lines]))
    return paths


def evaluated(workdir, files):
    """Embeddings of the files and of ``TEXTS`` as evaluation makes them, in batches of the size that they get here."""
    experiment = Experiment.from_dict(folder.read_config(workdir))
    source = {"name": "tables", "path": str(files[0].parent / "table.csv")}
    experiment = dataclasses.replace(
        experiment,
        batch_size=8,
        eval=dataclasses.replace(experiment.eval, batch_size=8),
        data=dataclasses.replace(experiment.data, source=source, train={}, evaluation={"path": source["path"]}),
    )
    program = Program(experiment)
    tokens = load_run_tokenizer(workdir, context_length=experiment.model.text_cfg.context_length)
    params = Checkpoints(workdir, read_only=True).restore_params(program.abstract_state.params, ema=True)
    evaluation = make_evaluation(experiment, program, tokens)
    bound = evaluation._bind(params)
    return bound.images(evaluation.open_source("test")), bound.texts(TEXTS)


def test_embeddings_are_those_of_evaluation(run, model, files):
    images, texts = evaluated(run, files)
    np.testing.assert_array_equal(model.encode_image(files), images)
    np.testing.assert_array_equal(model.encode_text(TEXTS), texts)
    assert images.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(model.encode_image(files), axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(model.similarity(files, TEXTS), images @ texts.T, atol=1e-6)


def test_pictures_of_every_kind_are_the_same(model, files):
    expected = model.encode_image(files)
    opened = [Image.open(path) for path in files]
    kinds = [[path.read_bytes() for path in files], [str(path) for path in files], opened]
    kinds.append([np.asarray(image) for image in opened])
    for images in kinds:
        np.testing.assert_array_equal(model.encode_image(images), expected)


def test_transparent_pictures_are_on_white_and_gray_ones_are_repeated(model):
    clear = np.zeros((40, 40, 4), np.uint8)
    white = np.full((40, 40), 255, np.uint8)
    a, b, c = model.encode_image([clear, white, np.repeat(white[..., None], 3, axis=2)])
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(b, c)


def test_a_rotated_photograph_is_upright(model):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = pictures.encoded(pictures.photograph(48, 80), exif=exif)
    [as_file], [as_image] = model.encode_image([data]), model.encode_image([Image.open(io.BytesIO(data))])
    np.testing.assert_array_equal(as_file, as_image)


def test_one_device_and_eight_and_every_number_of_rows_agree(run, model, files):
    many = [files[i % 5] for i in range(19)]
    expected = model.encode_image(many)
    assert len(jax.devices()) == 8
    alone = mmjax.load(run, devices=jax.devices()[:1], batch_size=16)
    for count in (1, 3, 5, 19):
        np.testing.assert_allclose(alone.encode_image(many[:count]), expected[:count], atol=1e-6)
        np.testing.assert_allclose(alone.encode_text(TEXTS[:count]), model.encode_text(TEXTS[:count]), atol=1e-6)


def test_each_batch_size_is_compiled_once(run, files):
    model = mmjax.load(run, devices=jax.devices()[:1], batch_size=4)
    assert model.batch_sizes == (1, 4)
    for count in (1, 2, 3, 4, 5, 1, 4):
        model.encode_image(files[:count])
    for size in model.batch_sizes:
        assert model._embedders[size].embed_images._cache_size() == 1


def test_probabilities(model, files):
    probabilities = model.classify(files, ["circle", "ring", "dog"], templates=["a {}", "a red {}"])
    assert probabilities.shape == (5, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    prompts = model.encode_text(["a circle", "a red circle", "a ring", "a red ring", "a dog", "a red dog"])
    classes = prompts.reshape(3, 2, -1).mean(1)
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    best = (model.encode_image(files) @ classes.T).argmax(1)
    np.testing.assert_array_equal(probabilities.argmax(1), best)


@pytest.mark.parametrize("format", ["open_clip", "hf"])
def test_an_exported_folder_gives_the_same(run, model, tmp_path, files, format):
    export_run(run, tmp_path / "out", format=format)
    theirs = mmjax.load(tmp_path / "out", batch_size=16)
    np.testing.assert_allclose(theirs.encode_image(files), model.encode_image(files), atol=1e-5)
    np.testing.assert_allclose(theirs.encode_text(TEXTS), model.encode_text(TEXTS), atol=1e-5)
    np.testing.assert_allclose(theirs.classify(files, TEXTS), model.classify(files, TEXTS), atol=1e-5)


def test_a_file_of_one_tower_needs_its_model(run, model, tmp_path, files):
    export_run(run, tmp_path / "out", format="open_clip")
    tensors = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    save_file(
        {name: array for name, array in tensors.items() if name.startswith("visual.")}, tmp_path / "a.safetensors"
    )
    with pytest.raises(ConfigError, match="a file of weights alone; name its model"):
        mmjax.load(tmp_path / "a.safetensors")
    images_alone = mmjax.load(tmp_path / "a.safetensors", model=model.config, batch_size=16)
    np.testing.assert_allclose(images_alone.encode_image(files), model.encode_image(files), atol=1e-5)
    with pytest.raises(ConfigError, match="no text tower"):
        images_alone.classify(files, ["cat"])


def test_a_model_with_a_bias_judges_each_label_by_itself(model, files):
    biased = copy.copy(model)
    biased.config = dataclasses.replace(model.config, init_logit_bias=-1.0)
    with pytest.raises(ConfigError, match="hold no logit_bias"):
        biased.classify(files, ["circle", "ring"])
    biased._params = model._params | {"logit_bias": jax.numpy.float32(-1)}
    logits = np.exp(model._params["logit_scale"]) * model.similarity(files, ["circle", "ring"]) - 1
    np.testing.assert_allclose(biased.classify(files, ["circle", "ring"]), 1 / (1 + np.exp(-logits)), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda model: model.encode_image(["nowhere.jpg"]), Unreadable, "nowhere.jpg: missing file"),
        (lambda model: model.encode_image([__file__]), Unreadable, "test_load.py: corrupt image"),
        (lambda model: model.encode_image([np.zeros((4, 4, 3))]), Unreadable, r"images\[0\]: .*float64\[4, 4, 3\]"),
        (lambda model: model.encode_image([]), ValueError, "images: the list is empty"),
        (lambda model: model.encode_image("a.jpg"), TypeError, "wrap it in a list"),
        (lambda model: model.encode_image(np.zeros((4, 4, 3), np.uint8)), TypeError, "wrap it in a list"),
        (lambda model: model.encode_text([]), ValueError, "texts: the list is empty"),
        (lambda model: model.encode_text("a cat"), TypeError, "wrap it in a list"),
        (lambda model: model.classify([b""], []), ValueError, r"labels=\[\]"),
        (lambda model: model.classify([], ["cat"]), ValueError, "images: the list is empty"),
        (lambda model: model.classify([b""], ["cat"], templates=["a photo"]), ValueError, "templates="),
    ],
)
def test_mistakes_are_one_line(model, call, error, message):
    with pytest.raises(error, match=message) as raised:
        call(model)
    assert "\n" not in str(raised.value)


def test_pictures_need_no_tokenizer(run, tmp_path, files):
    bare = tmp_path / "copy"
    shutil.copytree(run, bare)
    shutil.rmtree(bare / "tokenizer")
    model = mmjax.load(bare)
    assert model.encode_image(files).shape == (5, 16)
    with pytest.raises(ConfigError, match="tokenizer"):
        model.encode_text(["a cat"])
    assert mmjax.load(bare, tokenizer=str(run / "tokenizer")).encode_text(["a cat"]).shape == (1, 16)


def test_importing_the_package_imports_no_jax():
    code = "import sys, mmjax; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_batches_cover_all_rows():
    for devices in (1, 3, 8):
        sizes = inference._batch_sizes(64, devices)
        for count in (1, 7, 64, 65, 200):
            batches = list(inference._batches(count, sizes))
            assert [row for start, stop, _ in batches for row in range(start, stop)] == list(range(count))
            assert all(stop - start <= size for start, stop, size in batches)


def gated_model():
    """A model with gates over two modalities, every parameter random, and its parameters."""
    modalities = ("image", "depth")
    vision = {"modalities": modalities, "modality_channels": (3, 3), "fusion": "gated"}
    config = clip_models.config(vision=vision, scan=False, remat="none")
    params = clip_models.random_params(clip_models.split(config)[1])
    graph, _ = nnx.split(nnx.eval_shape(lambda: make_tower(config, "visual", dtype=np.float32, rngs=nnx.Rngs(0))))
    loaded = inference.Model(
        config,
        params,
        {"visual": graph},
        data=DataConfig(source={}, modalities=modalities),
        tokenizer=ConfigError("no tokenizer"),
        devices=jax.devices()[:1],
        batch_size=4,
        precision="float32",
    )
    return config, params, loaded


def test_gates_take_the_modalities_that_each_example_has(tmp_path):
    config, params, loaded = gated_model()
    one, two = (pictures.photograph(12, 12, seed=seed) for seed in (1, 2))
    Image.fromarray(two).save(tmp_path / "depth.png")
    got = loaded.encode_image([{"depth": tmp_path / "depth.png", "image": one}, {"depth": two}, {"image": one}, one])
    for row, example in zip(
        got, ({"image": one, "depth": two}, {"depth": two}, {"image": one}, {"image": one}), strict=True
    ):
        images = {name: pixels[None] for name, pixels in example.items()}
        want = towers_reference.encode_image(clip_models.double(params), images, config=config)[0]
        np.testing.assert_allclose(row, want / np.linalg.norm(want), atol=1e-5)
    with pytest.raises(ConfigError, match=r"images\[1\] has 'sonar': the model takes one or more of 'image', 'depth'"):
        loaded.encode_image([one, {"sonar": one}])
    with pytest.raises(ConfigError, match=r"images\[0\] has no picture"):
        loaded.encode_image([{}])
    with pytest.raises(TypeError, match="expected a list of pictures, got one dict"):
        loaded.encode_image({"image": one})
    with pytest.raises(ConfigError, match="takes image, depth together, not single pictures"):
        loaded.embedder()
