"""Answers to questions: VQA's accuracy by its definition, and an answer that comes from the right picture."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.sample import Unreadable
from mmjax.evals import nlvr2, snli_ve, vqa
from mmjax.evals.answers.normalization import normalize, vqa_accuracy
from mmjax.evals.common.pair_scores import Matcher
from mmjax.evals.common.results import make_results
from mmjax.evals.common.suite import DataSet
from support.towers import Source, Towers, image

ANSWERS = ("dark", "light", "neither")


def encode(params, images):
    return jnp.mean(images["image"].astype(jnp.float32), axis=(1, 2, 3))[:, None, None]


def answer(params, tokens, ids):
    """Light or dark by the picture alone."""
    light = (tokens[:, 0, 0] > 128).astype(jnp.float32)
    return jnp.stack([1 - light, light, jnp.full_like(light, 0.5)], axis=1)


def evaluate(source, *, own=(), **options):
    towers = Towers()
    bound = towers.embedder(matcher=Matcher(encode, lambda *_: 0, answer, answers=own)).bind(towers.params)
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


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("The  Two Dogs!", "2 dogs"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("1,000", "1000"),
        ("a, b", "b"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("3.5 ft.", "3.5 ft"),
        ("st. mary's", "st mary's"),
        ("Dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("well", "well"),
        ("yall", "y'all"),
        ("ow's'at", "'ow's'at"),
        (" an\tapple\n", "apple"),
        ("a", ""),
    ],
)
def test_answers_are_normalized_as_by_the_official_code(answer, wanted):
    assert normalize(answer) == wanted


def test_people_keep_their_articles_as_in_the_official_code():
    assert vqa_accuracy("The dog!", ["dog"] * 3 + ["the dog"] * 7) == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert vqa_accuracy("yes", ["yes."] * 2 + ["no"] * 8) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa_accuracy("yes", ["yes."] * 10) == 0  # all the same, so as they are
    assert vqa_accuracy("two", ["2"] * 10) == 1


def pair(i, left, right, **fields):
    pictures = {name: np.full((2, 2, 3), shade, np.uint8) for name, shade in (("left", left), ("right", right))}
    return {"id": i, **pictures, "captions": [f"statement {i}"], **fields}


def encode_pair(params, images):
    means = [jnp.mean(images[m].astype(jnp.float32), axis=(1, 2, 3)) for m in ("left", "right")]
    return jnp.stack(means, axis=1)[:, :, None, None]


def left_is_darker(params, tokens, ids):
    darker = (tokens[:, 0, 0, 0] < tokens[:, 1, 0, 0]).astype(jnp.float32)
    return jnp.stack([1 - darker, darker], axis=1)


def test_statements_are_judged_by_both_pictures_of_their_example():
    source = Source(
        pair(number, left, right, answer=answer, statement=statement)
        for number, left, right, answer, statement in (
            (0, 0, 9, "True", "a"),
            (0, 0, 9, "True", "b"),  # another sentence about the same pair
            (1, 9, 0, "False", "a"),
            (2, 5, 0, "True", "b"),
            (3, 0, 200, "True", "c"),
        )
    )
    source.modalities = ("left", "right")
    towers = Towers()
    matcher = Matcher(encode_pair, None, answer_pair=left_is_darker, modalities=("left", "right"))
    got = nlvr2.Evaluator(lambda split: source)(
        towers.embedder(matcher=matcher, modalities=("left",)).bind(towers.params)
    )
    # Other pairs: 9 > 0, 9 > 0, 5 > 0, 0 < 200, 0 < 9: false, false, false, true, true.
    counts = {"num_examples": 5, "num_unreadable": 0}
    assert got == pytest.approx({"accuracy": 0.8, "consistency": 2 / 3, "accuracy_other_image": 0.6, **counts})


def test_entailment_is_reported_by_label():
    labels = snli_ve.LABELS
    source = Source([question(i, 255 * (i % 2), answer=labels[i % 3]) for i in range(6)])
    towers = Towers()
    bound = towers.embedder(matcher=Matcher(encode, None, answer)).bind(towers.params)
    got = snli_ve.Evaluator(lambda split: source)(bound)
    # Dark is "contradiction" and light is "neutral": right for 0 and 1, and for 4 neither.
    assert got["accuracy"] == pytest.approx(2 / 6) and got["accuracy_entailment"] == 0
    assert got["accuracy_contradiction"] == 0.5 and got["accuracy_neutral"] == 0.5


def test_suites_find_published_layouts(tmp_path):
    assert vqa.Evaluator.find(tmp_path) == snli_ve.Evaluator.find(tmp_path) == nlvr2.Evaluator.find(tmp_path) == {}
    for name in (
        "vqa/v2_OpenEnded_mscoco_val2014_questions.json",
        "vqa/v2_mscoco_val2014_annotations.json",
        "vqa/answers.json",
        "snli_ve/snli_ve_test.jsonl",
        "nlvr2/data/dev.json",
        "nlvr2/data/test1.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert nlvr2.Evaluator.find(tmp_path) == {}  # without pictures
    for name in ("coco/val2014", "flickr30k/flickr30k-images", "nlvr2/dev"):
        (tmp_path / name).mkdir(parents=True)
    assert vqa.Evaluator.find(tmp_path)["vqa"]["answers"] == str(tmp_path / "vqa/answers.json")
    assert snli_ve.Evaluator.find(tmp_path)["snli_ve"]["source"]["name"] == "questions"
    assert nlvr2.Evaluator.find(tmp_path).keys() == {"nlvr2_dev"}
    assert nlvr2.Evaluator.find(tmp_path)["nlvr2_dev"]["source"]["image_root"] == str(tmp_path / "nlvr2")


def test_a_model_knows_its_own_answers():
    source = Source([question(i, 255 * (i % 2), answer=ANSWERS[i % 2]) for i in range(4)])
    assert evaluate(source, own=ANSWERS, answers=())["accuracy"] == 1
    assert evaluate(source, own=ANSWERS[::-1], answers=())["accuracy"] < 1
    assert evaluate(source, own=ANSWERS[::-1])["accuracy"] == 1  # an option has precedence
    with pytest.raises(ConfigError, match=r"answers: lists 0, and the model has 3"):
        evaluate(source, answers=())


def test_answers_of_another_task_are_not_those_of_entailment():
    """The first answer is chosen, that of a dark picture."""
    towers = Towers()
    source = Source([question(i, 0, answer="neutral") for i in range(4)])
    for own, right in ((ANSWERS, 0), (("neutral", "entailment", "contradiction"), 1)):
        bound = towers.embedder(matcher=Matcher(encode, None, answer, answers=own)).bind(towers.params)
        assert snli_ve.Evaluator(lambda split: source)(bound)["accuracy"] == right


def test_another_list_of_answers_is_refused():
    with pytest.raises(ConfigError, match=r"answers: lists 2, and the model has 3"):
        evaluate(Source([question(0, 0, answer="dark")]), answers=("dark", "light"))
    with pytest.raises(ConfigError, match=r"example 0 \(7\) has no answer; vqa needs .*annotations"):
        evaluate(Source([{"id": 7, "image": image(np.random.default_rng(0)), "captions": ["?"]}]))


def test_the_file_of_a_wrong_list_is_named(tmp_path):
    """A suite takes it from the folder of benchmarks, so nobody may have named it."""
    (tmp_path / "answers.json").write_text('["dark", "light"]')
    with pytest.raises(ConfigError, match=r"answers: lists 2 \(.*/answers\.json\), and the model has 3"):
        evaluate(Source([question(0, 0, answer="dark")]), answers=str(tmp_path / "answers.json"))


def test_questions_without_their_picture_are_counted():
    """A folder with half of the pictures has an accuracy too, of other questions."""

    class Holey(Source):
        def __getitem__(self, index):
            if index == 2:
                raise Unreadable("missing file", "on purpose", key="2")
            return super().__getitem__(index)

    got = evaluate(Holey(question(i, 0, answer=ANSWERS[i == 2]) for i in range(5)))
    assert got["accuracy"] == 1 and got["num_examples"] == 4 and got["num_unreadable"] == 1
    data_set = DataSet("vqa", "vqa", {})
    counts = {result.metric: result.count for result in make_results(data_set, got, model="", weights="")}
    assert counts["accuracy"] == 4 and counts["num_examples"] is None
