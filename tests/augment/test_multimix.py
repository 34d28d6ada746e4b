import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.augment.multimix import draw_mix_ratios, mix_rows
from mmjax.core.config import ConfigError
from mmjax.core.types import Provenance
from mmjax.objectives.common.targets import source_mass
from support import features


def matrix(mix_ratios, rows):
    """The source matrix W of the equation, one entry at a time."""
    n = mix_ratios.shape[1]
    w = np.zeros((rows, rows))
    for i in range(rows):
        for k in range(n):
            w[i, (i + k * rows // n) % rows] += mix_ratios[i, k]
    return w


@pytest.mark.parametrize("alpha", [0.05, 1.0, 5.0])
def test_mix_ratios_are_dirichlet(alpha):
    n, rows = 3, 20_000
    mix_ratios = np.asarray(
        draw_mix_ratios(jax.random.key(0), jnp.float32(alpha), shape=(rows, n), draw="row"), np.float64
    )
    np.testing.assert_allclose(mix_ratios.sum(1), 1, atol=1e-5)
    variance = (1 / n) * (1 - 1 / n) / (n * alpha + 1)
    assert (mix_ratios >= 0).all()
    np.testing.assert_allclose(mix_ratios.mean(0), 1 / n, atol=4 * np.sqrt(variance / rows))
    np.testing.assert_allclose(mix_ratios.var(0), variance, rtol=0.06)


def test_one_draw_for_the_batch_and_none():
    assert len(np.unique(draw_mix_ratios(jax.random.key(0), jnp.float32(1), shape=(5, 2), draw="batch"), axis=0)) == 1
    off = draw_mix_ratios(jax.random.key(0), jnp.float32(0), shape=(5, 3), draw="row")
    np.testing.assert_array_equal(off, [[1, 0, 0]] * 5)


@pytest.mark.parametrize(("rows", "n"), [(8, 4), (7, 3), (2, 2)])
def test_rows_and_labels_are_those_of_the_source_matrix(rows, n):
    random = np.random.default_rng(0)
    x, mix_ratios = random.normal(size=(rows, 5)), random.dirichlet(np.ones(n), rows)
    w = matrix(mix_ratios, rows)
    np.testing.assert_allclose(mix_rows(jnp.float32(x), jnp.float32(mix_ratios)), w @ x, atol=1e-6)
    ids = random.integers(0, 4, rows)  # examples that come twice
    clean = Provenance.from_ids(jnp.asarray(ids, jnp.int32))
    source = features.module("multimix", sources=n)._mix_source(clean, jnp.float32(mix_ratios))
    np.testing.assert_allclose(source_mass(source, source), w @ (ids[:, None] == ids) @ w.T, atol=1e-6)


def test_without_mixing_it_is_the_clean_loss():
    pooled, params = features.features(), features.head_params()
    _, metrics = features.added(features.made("multimix", alpha=0.0), {}, params, pooled)
    np.testing.assert_allclose(metrics["augment/multimix/task_gap"], 0, atol=1e-6)


def test_each_side_may_have_mix_ratios_of_its_own():
    pooled, params = features.features(), features.head_params()
    values = [
        float(features.added(features.made("multimix", mix_ratios=s), {}, params, pooled)[0])
        for s in ("same", "separate")
    ]
    assert values[0] != values[1]


def test_a_mix_needs_two_sources_and_as_many_rows():
    with pytest.raises(ConfigError, match=r"augment\.multimix\.sources=1"):
        features.made("multimix", sources=1)
    with pytest.raises(ConfigError, match=r"augment\.multimix\.sources=9: more than the 8 rows"):
        features.added(features.made("multimix", sources=9), {}, features.head_params(), features.features())
