"""A model of mmjax as a judge: the numbers of its own methods, whatever the batch."""

import jax
import numpy as np
import pytest

import mmjax
from mmjax.core import plugins
from mmjax.core.config import ConfigError
from mmjax.generate.backend import Decoding, Picture
from support import models_in_use

FOLDER = "mmjax.generate.backends"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = models_in_use.write(tmp_path_factory.mktemp("model"))
    return folder, mmjax.load(folder, devices=jax.devices()[:1], batch_size=4)


def pictures(n):
    return [Picture(np.random.default_rng(i).integers(0, 256, (20 + i, 32, 3), dtype=np.uint8)) for i in range(n)]


def make(role, model, **options):
    section = {"name": "mmjax", "model": str(model[0]), "batch_size": 4, **options}
    backend = plugins.make(FOLDER, role, section, path="models.x")
    backend.__dict__["_loaded"] = model[1]  # what it would load, already compiled
    return backend


def test_scores_are_the_models_cosines_in_order(model):
    texts = [["a red circle", "a dog"], [], ["a dog", "a dog", "a blue square"]]
    scores = make("Scorer", model).score(pictures(3), texts)
    for picture, several, values in zip(pictures(3), texts, scores, strict=True):
        assert values.dtype == np.float32 and values.shape == (len(several),)
        if several:
            expected = model[1].encode_text(several) @ model[1].encode_image([picture.pixels])[0]
            np.testing.assert_allclose(values, expected, atol=1e-6)
    assert scores[2][0] == scores[2][1]
    idle = plugins.make(FOLDER, "Scorer", {"name": "mmjax", "model": "nowhere"}, path="models.x")
    assert idle.score(pictures(1), [[]])[0].shape == (0,)  # nothing is loaded for nothing
    with pytest.raises(ConfigError, match="nowhere"):
        idle.score(pictures(1), [["a"]])


def test_classes_are_the_models_zero_shot_probabilities(model):
    classes, templates = ["red circle", "dog"], ("a {}", "the {}")
    labeler = make("Labeler", model, templates=templates)
    expected = model[1].classify([p.pixels for p in pictures(3)], classes, templates=templates)
    np.testing.assert_allclose(labeler.probabilities(pictures(3), classes), expected, atol=1e-6)
    np.testing.assert_allclose(labeler.probabilities(pictures(3)[:1], classes)[0], expected[0], atol=1e-6)
    assert labeler.probabilities([], classes) == []


@pytest.mark.parametrize(
    ("decoding", "options"),
    [
        (Decoding(), {"method": "greedy"}),
        (Decoding(temperature=0, max_tokens=9), {"method": "greedy", "max_length": 9}),
        (Decoding(beams=3, min_tokens=2), {"method": "beam", "beams": 3, "min_length": 2}),
        (Decoding(n=2), {"method": "sample"}),
        (
            Decoding(top_k=50, temperature=0.75, top_p=0.9),
            {"method": "sample", "top_k": 50, "temperature": 0.75, "top_p": 0.9},
        ),
    ],
)
def test_captions_are_the_decoders_with_a_number_for_each_picture(decoding, options):
    asked = []

    class Decoder:
        def captions(self, images, *, count, numbers, prompt, **own):
            asked.append((numbers, prompt, own))
            return [[f"{prompt}{image.shape[0]} {k}" for k in range(count)] for image in images]

    captioner = make("Captioner", ("nowhere", Decoder()))
    texts = captioner.caption(pictures(3), [None, "Question:", None], decoding, [7, 8, 2**32 - 1])
    assert texts == [[f"{'Question:' if i == 1 else ''}{20 + i} {k}" for k in range(decoding.n)] for i in range(3)]
    assert asked == [([3, 2**31 - 1], "", options), ([4], "Question:", options)]
    assert captioner.caption([], [], decoding, []) == [] and len(asked) == 2


def test_it_loads_its_model_by_itself(model):
    folder, _ = model
    [scores] = plugins.make(FOLDER, "Scorer", {"name": "mmjax", "model": str(folder)}, path="models.x").score(
        pictures(1), [["a dog"]]
    )
    assert scores.shape == (1,) and abs(scores[0]) <= 1 + 1e-6
