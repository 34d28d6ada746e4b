"""A model of mmjax as a judge: the numbers of its own methods, whatever the batch."""

import jax
import numpy as np
import pytest

import mmjax
from mmjax.core import plugins
from mmjax.generate.backend import Picture
from support import models_in_use

FOLDER = "mmjax.generate.backends"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return models_in_use.write(tmp_path_factory.mktemp("model"))


def pictures(n):
    return [Picture(np.random.default_rng(i).integers(0, 256, (20 + i, 32, 3), dtype=np.uint8)) for i in range(n)]


def make(role, folder, **options):
    return plugins.make(
        FOLDER, role, {"name": "clip", "model": str(folder), "batch_size": 16, **options}, path="models.x"
    )


def test_scores_are_the_models_cosines_in_order(folder):
    model = mmjax.load(folder, devices=jax.devices()[:1], batch_size=16)
    texts = [["a red circle", "a dog"], [], ["a dog", "a dog", "a blue square"]]
    scores = make("Scorer", folder).score(pictures(3), texts)
    for picture, several, values in zip(pictures(3), texts, scores, strict=True):
        assert values.dtype == np.float32 and values.shape == (len(several),)
        if several:
            expected = model.encode_text(several) @ model.encode_image([picture.pixels])[0]
            np.testing.assert_allclose(values, expected, atol=1e-6)
    assert scores[2][0] == scores[2][1]
    assert make("Scorer", "nowhere").score(pictures(1), [[]])[0].shape == (0,)  # nothing is loaded for nothing


def test_classes_are_the_models_zero_shot_probabilities(folder):
    model = mmjax.load(folder, devices=jax.devices()[:1], batch_size=16)
    classes, templates = ["red circle", "dog"], ("a {}", "the {}")
    labeler = make("Labeler", folder, templates=templates)
    expected = model.classify([p.pixels for p in pictures(3)], classes, templates=templates)
    np.testing.assert_allclose(labeler.probabilities(pictures(3), classes), expected, atol=1e-6)
    np.testing.assert_allclose(labeler.probabilities(pictures(3)[:1], classes)[0], expected[0], atol=1e-6)
    assert labeler.probabilities([], classes) == []
