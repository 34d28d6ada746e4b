import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.augment.multimix import combined, dirichlet
from mmjax.core.config import ConfigError
from mmjax.core.types import Provenance
from mmjax.objectives.common.targets import source_mass
from support import features


def matrix(shares, rows):
    """The source matrix W of the equation, one entry at a time."""
    n = shares.shape[1]
    w = np.zeros((rows, rows))
    for i in range(rows):
        for k in range(n):
            w[i, (i + k * rows // n) % rows] += shares[i, k]
    return w


@pytest.mark.parametrize("alpha", [0.05, 1.0, 5.0])
def test_shares_are_dirichlet(alpha):
    n, rows = 3, 20_000
    shares = np.asarray(dirichlet(jax.random.key(0), jnp.float32(alpha), shape=(rows, n), draw="row"), np.float64)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    variance = (1 / n) * (1 - 1 / n) / (n * alpha + 1)
    assert (shares >= 0).all()
    np.testing.assert_allclose(shares.mean(0), 1 / n, atol=4 * np.sqrt(variance / rows))
    np.testing.assert_allclose(shares.var(0), variance, rtol=0.06)


def test_one_draw_for_the_batch_and_none():
    assert len(np.unique(dirichlet(jax.random.key(0), jnp.float32(1), shape=(5, 2), draw="batch"), axis=0)) == 1
    off = dirichlet(jax.random.key(0), jnp.float32(0), shape=(5, 3), draw="row")
    np.testing.assert_array_equal(off, [[1, 0, 0]] * 5)


@pytest.mark.parametrize(("rows", "n"), [(8, 4), (7, 3), (2, 2)])
def test_rows_and_labels_are_those_of_the_source_matrix(rows, n):
    random = np.random.default_rng(0)
    x, shares = random.normal(size=(rows, 5)), random.dirichlet(np.ones(n), rows)
    w = matrix(shares, rows)
    np.testing.assert_allclose(combined(jnp.float32(x), jnp.float32(shares)), w @ x, atol=1e-6)
    ids = random.integers(0, 4, rows)  # examples that come twice
    clean = Provenance.from_ids(jnp.asarray(ids, jnp.int32))
    source = features.module("multimix", sources=n)._source(clean, jnp.float32(shares))
    np.testing.assert_allclose(source_mass(source, source), w @ (ids[:, None] == ids) @ w.T, atol=1e-6)


def test_without_mixing_it_is_the_clean_loss():
    pooled, params = features.features(), features.head_params()
    _, metrics = features.added(features.made("multimix", alpha=0.0), {}, params, pooled)
    np.testing.assert_allclose(metrics["augment/multimix/task_gap"], 0, atol=1e-6)


def test_each_side_may_have_shares_of_its_own():
    pooled, params = features.features(), features.head_params()
    values = [
        float(features.added(features.made("multimix", shares=s), {}, params, pooled)[0]) for s in ("same", "separate")
    ]
    assert values[0] != values[1]


def test_a_mix_needs_two_sources_and_as_many_rows():
    with pytest.raises(ConfigError, match=r"augment\.multimix\.sources=1"):
        features.made("multimix", sources=1)
    with pytest.raises(ConfigError, match=r"augment\.multimix\.sources=9: more than the 8 rows"):
        features.added(features.made("multimix", sources=9), {}, features.head_params(), features.features())
