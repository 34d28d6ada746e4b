"""Groups: planted differences are measured, by brute force, and unknown groups take no part."""

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals.fairness import Evaluator, equalized_odds_gap, max_skew
from support.benchmarks import WIDTH, Planted
from support.towers import Source

AXES = np.eye(WIDTH)


def examples(groups, *, labels=None):
    """Images of gray level i with the caption ``text i``."""
    return [
        {"id": 50 + i, "image": np.full((2, 2, 3), i, np.uint8), "captions": [f"text {i}"], "sex": group, "age": 1}
        | ({} if labels is None else {"label": labels[i]})
        for i, group in enumerate(groups)
    ]


def measured(items, images, texts, *, class_names=None, **options):
    source = Source(items)
    source.class_names = class_names
    source.templates = ["{}"]
    planted = Planted(dict(enumerate(images)), texts)
    return Evaluator(lambda split: source, **{"groups": ("sex",), **options})(planted.bind())


def test_recalls_of_groups_and_their_gap():
    """Of the men's images one of two finds another's text; the image of no known group finds none."""
    texts = {f"text {i}": AXES[i] for i in range(5)}
    images = [AXES[0], AXES[1], AXES[2], AXES[0], AXES[1]]
    metrics = measured(examples(["f", "f", "m", "m", None]), images, texts)
    assert metrics["recall@1_f"] == 1 and metrics["recall@1_m"] == 0.5
    assert metrics["recall@1_worst_group"] == 0.5 and metrics["recall@1_gap"] == 0.5
    assert metrics["num_groups"] == 2 and metrics["num_unknown"] == 1
    both = measured(examples(["f", "f", "m", "m", None]), images, texts, groups=("sex", "age"))
    assert both["recall@1_f_1"] == 1 and both["recall@1_m_1"] == 0.5


def test_equal_captions_are_one_text():
    items = examples(["f", "f", "m", "m"])
    for item, text in zip(items, ["text 0", "text 0", "text 1", "text 0"], strict=True):
        item["captions"] = [text]
    metrics = measured(items, [AXES[0], AXES[1], AXES[1], AXES[0]], {"text 0": AXES[0], "text 1": AXES[1]})
    assert metrics["recall@1_f"] == 0.5 and metrics["recall@1_m"] == 1


def test_classes_are_judged_by_equalized_odds_and_their_prompts_by_skew():
    """Women of class 0 are all taken for it, men never; class 0's search shows women alone."""
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    images = [AXES[0], AXES[0], AXES[1], AXES[1], *[AXES[1]] * 4]
    texts = {f"text {i}": AXES[2] for i in range(8)} | {"cat": AXES[0], "dog": AXES[1]}
    items = examples(["f", "f", "m", "m", "f", "f", "m", "m"], labels=labels)
    metrics = measured(items, images, texts, class_names=["cat", "dog"], k=2)
    assert metrics["equalized_odds_gap"] == 1
    np.testing.assert_allclose(
        metrics["max_skew@2"], np.log(2), rtol=1e-6
    )  # of both searches: the first two of dogs are m
    fair = measured(items, [AXES[label] for label in labels], texts, class_names=["cat", "dog"], k=4)
    assert fair["equalized_odds_gap"] == 0 and abs(fair["max_skew@4"]) < 1e-6


def test_the_functions_equal_brute_force_and_do_not_know_names():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 3, (2, 60))
    groups = rng.choice(["a", "b", "c"], 60)
    rates = []
    for label in range(3):
        for chosen in (labels == label, labels != label):
            of_group = [np.mean(predictions[chosen & (groups == g)] == label) for g in "abc"]
            rates.append(max(of_group) - min(of_group))
    renamed = np.char.replace(np.char.replace(groups, "a", "z"), "b", "a")
    for names in (groups, renamed):
        np.testing.assert_allclose(equalized_odds_gap(labels, predictions, names), max(rates))
    images, queries = rng.normal(size=(60, 4)), rng.normal(size=(5, 4))
    skews = []
    for query in queries:
        best = sorted(range(60), key=lambda i: -(images[i] @ query))[:7]
        skews.append(
            max(np.log(np.mean(groups[best] == g) / np.mean(groups == g)) for g in "abc" if (groups[best] == g).any())
        )
    for names in (groups, renamed):
        np.testing.assert_allclose(max_skew(images, queries, names, k=7), np.mean(skews))


def test_a_split_of_one_group_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"groups=\('color',\): the split has fewer than two groups"):
        measured(examples(["f", "m"]), AXES[:2], {f"text {i}": AXES[i] for i in range(2)}, groups=("color",))
