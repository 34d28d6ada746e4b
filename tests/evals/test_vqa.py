"""Answers to questions: VQA's accuracy by its definition, and an answer that comes from the right picture."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals import vqa
from mmjax.evals.common.pair_scores import Matcher
from support.towers import Source, Towers, image

ANSWERS = ("dark", "light", "neither")


def encode(params, images):
    return jnp.mean(images["image"].astype(jnp.float32), axis=(1, 2, 3))[:, None, None]


def answer(params, tokens, ids):
    """Light or dark by the picture alone."""
    light = (tokens[:, 0, 0] > 128).astype(jnp.float32)
    return jnp.stack([1 - light, light, jnp.full_like(light, 0.5)], axis=1)


def evaluate(source, **options):
    towers = Towers()
    bound = towers.embedder(matcher=Matcher(encode, lambda *_: 0, answer)).bind(towers.params)
    return vqa.Evaluator(lambda split: source, **{"answers": ANSWERS} | options)(bound)


def question(i, shade, **fields):
    return {"id": i, "image": np.full((2, 2, 3), shade, np.uint8), "captions": [f"question {i}"], **fields}


def test_each_question_is_asked_of_its_own_picture():
    source = Source([question(i, 255 * (i % 2), answer=ANSWERS[i % 2], kind="ab"[i > 3]) for i in range(6)])
    source.append(question(6, 255, answer="dark", kind="b"))
    got = evaluate(source)
    assert (
        got["accuracy"] == pytest.approx(6 / 7) and got["accuracy_a"] == 1 and got["accuracy_b"] == pytest.approx(2 / 3)
    )
    # Of the next picture: 0 1 0 1 0 1 1 become 1 0 1 0 1 1 0, which is right for the sixth and the seventh.
    assert got["accuracy_other_image"] == pytest.approx(2 / 7) and got["unlisted"] == 0


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 10])
def test_answers_of_ten_people_count_as_in_vqa(count):
    people = ["dark"] * count + ["grey"] * (10 - count)
    wanted = np.mean([min(1, sum(a == "dark" for a in nine) / 3) for nine in itertools.combinations(people, 9)])
    got = evaluate(Source([question(0, 0, answers=people), question(1, 0, answers=people)]))
    assert got["accuracy"] == pytest.approx(wanted) and got["unlisted"] == float(count == 0)


def test_another_list_of_answers_is_refused():
    with pytest.raises(ConfigError, match=r"answers: lists 2, and the model has 3"):
        evaluate(Source([question(0, 0, answer="dark")]), answers=("dark", "light"))
    with pytest.raises(ValueError, match="example 0 has no answer"):
        evaluate(Source([{"id": 0, "image": image(np.random.default_rng(0)), "captions": ["?"]}]))
