import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.augment.common.mixing import draw_mix_ratio, flipped, mixed_source
from mmjax.core.types import Provenance
from mmjax.objectives.common.targets import source_mass
from support import objectives_reference as reference


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.0])
def test_mix_ratios_have_the_moments_of_beta(alpha):
    n = 20_000
    mix_ratio = np.asarray(draw_mix_ratio(jax.random.key(0), jnp.float32(alpha), rows=n, draw="row"), np.float64)
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(mix_ratio.mean() - 0.5) < 4 * np.sqrt(variance / n)
    fourth = np.mean((mix_ratio - 0.5) ** 4)
    assert abs(np.mean((mix_ratio - 0.5) ** 2) - variance) < 4 * np.sqrt((fourth - variance**2) / n)


def test_one_mix_ratio_for_the_batch_or_none_at_all():
    mix_ratio = draw_mix_ratio(jax.random.key(1), jnp.float32(1), rows=6, draw="batch")
    assert mix_ratio.shape == (6, 1) and len(np.unique(mix_ratio)) == 1 and 0 < mix_ratio[0, 0] < 1
    assert (draw_mix_ratio(jax.random.key(1), jnp.float32(0), rows=6, draw="row") == 1).all()


def test_the_partner_is_an_involution():
    x = jnp.arange(7)
    np.testing.assert_array_equal(flipped(flipped(x)), x)


def mixes(mix_ratio, targets="provenance", n=6):
    ids = Provenance.from_ids(jnp.arange(n, dtype=jnp.int32))
    partner = jax.tree.map(flipped, ids)
    return mixed_source([(ids, mix_ratio), (partner, 1 - mix_ratio)], targets), ids


@pytest.mark.parametrize("mix_ratio", [0.0, 0.3, 0.5, 1.0])
def test_targets_of_a_mix(mix_ratio):
    whole = jnp.full((6, 1), mix_ratio, jnp.float32)
    source, clean = mixes(whole)
    one, both = np.asarray(source_mass(source, clean)), np.asarray(source_mass(source, source))
    eye, partner = np.eye(6), np.eye(6)[::-1]
    np.testing.assert_allclose(one, mix_ratio * eye + (1 - mix_ratio) * partner, atol=1e-7)
    np.testing.assert_allclose(
        both, (mix_ratio**2 + (1 - mix_ratio) ** 2) * eye + 2 * mix_ratio * (1 - mix_ratio) * partner, atol=1e-6
    )
    np.testing.assert_allclose(both, both.T, atol=1e-7)
    assert (np.diag(both) >= np.diag(both[::-1]) - 1e-7).all()


def test_rows_and_columns_have_mass_with_a_mix_ratio_for_each_row_and_a_fixed_point():
    mix_ratio = jnp.asarray(np.random.default_rng(0).random((7, 1)), jnp.float32)
    source, clean = mixes(mix_ratio, n=7)
    mass = np.asarray(source_mass(source, clean))
    np.testing.assert_allclose(mass.sum(1), 1, atol=1e-6)  # columns do not sum to one: the objective divides by them
    np.testing.assert_allclose(mass[3, 3], 1, atol=1e-6)
    assert not np.allclose(mass.sum(0), 1)


def test_mass_equals_brute_force_with_examples_that_come_twice():
    random = np.random.default_rng(1)
    ids = random.integers(0, 4, (8, 1)).astype(np.int32)
    clean = Provenance(ids=jnp.asarray(ids), weight=jnp.ones((8, 1)))
    mix_ratio = jnp.asarray(random.random((8, 1)), jnp.float32)
    source = mixed_source([(clean, mix_ratio), (jax.tree.map(flipped, clean), 1 - mix_ratio)], "provenance")
    mix_ratio = np.asarray(mix_ratio, np.float64)
    w = np.eye(8) * mix_ratio + np.eye(8)[::-1] * (1 - mix_ratio)  # sources of each row, over examples
    affinity = ids == ids.T
    np.testing.assert_allclose(source_mass(source, source), w @ affinity @ w.T, atol=1e-6)
    want = reference.source_mass(*(np.asarray(x) for x in (source.ids, source.weight, clean.ids, clean.weight)))
    np.testing.assert_allclose(source_mass(source, clean), want, atol=1e-6)


def test_identity_keeps_the_first_label_and_padding_stays_padding():
    ids = jnp.array([0, 1, 2, -1], jnp.int32)
    clean = Provenance.from_ids(ids)
    half = jnp.full((4, 1), 0.5)
    for targets in ("provenance", "identity"):
        source = mixed_source([(clean, half), (jax.tree.map(flipped, clean), half)], targets)
        np.testing.assert_array_equal(source.valid, [False, True, True, False])
        assert (np.asarray(source.weight)[[0, 3]] == 0).all()
    np.testing.assert_array_equal(source_mass(source, clean), np.diag([0.0, 1, 1, 0]))
