import numpy as np
import pytest

from mmjax.evals.common.classification import auroc, f1_macro, mean_average_precision, predict, worst_group


def average_precision(scores, positive):
    """By every threshold: the sum of precision over the recall that it adds."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [s >= threshold for s in scores]
        hits = sum(c and p for c, p in zip(chosen, positive, strict=True))
        recall, precision = hits / sum(positive), hits / sum(chosen)
        total, before = total + (recall - before) * precision, recall
    return total


@pytest.mark.parametrize("seed", range(6))
def test_mean_average_precision_equals_a_loop_over_thresholds(seed):
    rng = np.random.default_rng(seed)
    n, c = rng.integers(1, 30), 4
    tied = seed % 2
    # One-hot classes: a score is an image's coordinate, and integers tie.
    images = (rng.integers(0, 3, (n, c)) if tied else rng.standard_normal((n, c))).astype(np.float32)
    positive = rng.random((n, c)) < 0.4
    positive[:, 1] = False  # never occurs, and is left out
    positive[0, 0] = True
    got = mean_average_precision(images, np.eye(c, dtype=np.float32), positive)
    expected = [
        average_precision(images[:, k].tolist(), positive[:, k].tolist()) for k in range(c) if positive[:, k].any()
    ]
    assert got == pytest.approx(np.mean(expected))


def test_a_perfect_order_has_one_and_a_constant_one_the_base_rate():
    positive = np.array([[True], [False], [True], [False]])
    one = np.ones((1, 1), np.float32)
    assert mean_average_precision(np.array([[4], [1], [3], [2]], np.float32), one, positive) == 1
    assert mean_average_precision(np.ones((4, 1), np.float32), one, positive) == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_macro_f1_equals_precision_and_recall_by_class(seed):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, 4, 25), rng.integers(0, 7, 25)  # some predictions never occur
    expected = []
    for label in set(labels.tolist()):
        hits = sum((labels == label) & (predictions == label))
        precision, recall = hits / max(sum(predictions == label), 1), hits / sum(labels == label)
        expected.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    assert f1_macro(labels, predictions) == pytest.approx(np.mean(expected))


def test_the_worst_group_is_one_that_counts():
    hits, groups = np.array([1, 1, 0, 1, 0, 0], bool), np.array([7, 7, 7, 2, 5, 5])
    assert worst_group(hits, groups) == (0.0, 3)
    assert worst_group(hits, groups, ignored=(5,)) == (pytest.approx(2 / 3), 2)


def test_predictions_are_those_of_one_product(monkeypatch):
    monkeypatch.setattr("mmjax.evals.common.classification.CHUNK", 4)
    rng = np.random.default_rng(0)
    images, classes = rng.standard_normal((11, 5)), rng.standard_normal((6, 5))
    np.testing.assert_array_equal(predict(images, classes), np.argmax(images @ classes.T, 1))


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_fraction_of_ordered_pairs_with_halves_for_ties(seed):
    rng = np.random.default_rng(seed)
    positive, negative = rng.integers(0, 6, 31) + 1.0, rng.integers(0, 6, 17) + 0.0
    difference = positive[:, None] - negative[None, :]
    assert auroc(positive, negative) == pytest.approx(np.mean((difference > 0) + (difference == 0) / 2))
    assert auroc(negative, positive) == pytest.approx(1 - auroc(positive, negative))
    assert auroc(np.exp(positive), np.exp(negative)) == pytest.approx(auroc(positive, negative))  # monotone


def test_its_ends():
    assert auroc(np.array([2.0, 3.0]), np.array([1.0])) == 1
    assert auroc(np.array([0.0]), np.array([1.0, 2.0])) == 0
    assert auroc(np.ones(5), np.ones(3)) == 0.5
    almost = 0.1 * 3 - 0.3  # what another order of summation leaves
    assert almost and auroc(np.array([0.3]), np.array([0.3 + almost])) == 0.5
