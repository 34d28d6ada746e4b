import numpy as np
import pytest

from mmjax.evals.common.auroc import auroc


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
