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
def test_captions_are_the_decoders_with_a_seed_for_each_picture(decoding, options):
    asked = []

    class Decoder:
        def captions(self, images, *, count, seed=0, **own):
            asked.append((len(images), count, seed, own))
            return [[f"{image.shape[0]} {k}" for k in range(count)] for image in images]

    captioner = make("Captioner", "nowhere")
    captioner.__dict__["_loaded"] = Decoder()
    texts = captioner.caption(pictures(3), [None] * 3, decoding, [7, 8, 2**32 - 1])
    assert texts == [[f"{20 + i} {k}" for k in range(decoding.n)] for i in range(3)]
    assert all(own == options for *_, own in asked)
    if options["method"] == "sample":
        assert [(n, seed) for n, _, seed, _ in asked] == [(1, 3), (1, 4), (1, 2**31 - 1)]
    else:
        assert [n for n, *_ in asked] == [3]
    with pytest.raises(ConfigError, match="prompt='Question:': a decoder of mmjax takes none"):
        captioner.caption(pictures(1), ["Question:"], decoding, [0])
