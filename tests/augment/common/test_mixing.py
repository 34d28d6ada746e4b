import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.augment.common.mixing import beta_share, flipped, mixed_source
from mmjax.core.types import Provenance
from mmjax.objectives.common.targets import source_mass
from support import objectives_reference as reference


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.0])
def test_shares_have_the_moments_of_beta(alpha):
    n = 20_000
    share = np.asarray(beta_share(jax.random.key(0), jnp.float32(alpha), rows=n, draw="row"), np.float64)
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(share.mean() - 0.5) < 4 * np.sqrt(variance / n)
    fourth = np.mean((share - 0.5) ** 4)
    assert abs(np.mean((share - 0.5) ** 2) - variance) < 4 * np.sqrt((fourth - variance**2) / n)


def test_one_share_for_the_batch_or_none_at_all():
    share = beta_share(jax.random.key(1), jnp.float32(1), rows=6, draw="batch")
    assert share.shape == (6, 1) and len(np.unique(share)) == 1 and 0 < share[0, 0] < 1
    assert (beta_share(jax.random.key(1), jnp.float32(0), rows=6, draw="row") == 1).all()


def test_the_partner_is_an_involution():
    x = jnp.arange(7)
    np.testing.assert_array_equal(flipped(flipped(x)), x)


def mixes(share, targets="provenance", n=6):
    ids = Provenance.from_ids(jnp.arange(n, dtype=jnp.int32))
    partner = jax.tree.map(flipped, ids)
    return mixed_source([(ids, share), (partner, 1 - share)], targets), ids


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_targets_of_a_mix(share):
    whole = jnp.full((6, 1), share, jnp.float32)
    source, clean = mixes(whole)
    one, both = np.asarray(source_mass(source, clean)), np.asarray(source_mass(source, source))
    eye, partner = np.eye(6), np.eye(6)[::-1]
    np.testing.assert_allclose(one, share * eye + (1 - share) * partner, atol=1e-7)
    np.testing.assert_allclose(both, (share**2 + (1 - share) ** 2) * eye + 2 * share * (1 - share) * partner, atol=1e-6)
    np.testing.assert_allclose(both, both.T, atol=1e-7)
    assert (np.diag(both) >= np.diag(both[::-1]) - 1e-7).all()


def test_rows_and_columns_have_mass_with_a_share_for_each_row_and_a_fixed_point():
    share = jnp.asarray(np.random.default_rng(0).random((7, 1)), jnp.float32)
    source, clean = mixes(share, n=7)
    mass = np.asarray(source_mass(source, clean))
    np.testing.assert_allclose(mass.sum(1), 1, atol=1e-6)  # columns do not sum to one: the objective divides by them
    np.testing.assert_allclose(mass[3, 3], 1, atol=1e-6)
    assert not np.allclose(mass.sum(0), 1)


def test_mass_equals_brute_force_with_examples_that_come_twice():
    random = np.random.default_rng(1)
    ids = random.integers(0, 4, (8, 1)).astype(np.int32)
    clean = Provenance(ids=jnp.asarray(ids), weight=jnp.ones((8, 1)))
    share = jnp.asarray(random.random((8, 1)), jnp.float32)
    source = mixed_source([(clean, share), (jax.tree.map(flipped, clean), 1 - share)], "provenance")
    share = np.asarray(share, np.float64)
    w = np.eye(8) * share + np.eye(8)[::-1] * (1 - share)  # sources of each row, over examples
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
