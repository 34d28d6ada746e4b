"""Which modalities stay: the law of subsets, never none, and the same draws however the batch is split."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import stats

from mmjax.augment.common.schedules import Schedule
from mmjax.augment.modality_dropout import Augmentation, keep_some
from mmjax.core import plugins
from mmjax.core.config import ConfigError
from mmjax.core.types import Batch, Provenance
from mmjax.train.augmentation import Augmentations
from support import features

GATED = dataclasses.replace(features.TOWERS, gated=True)
NAMES = ("depth", "image", "thermal")


def batch(rows=8, present=None):
    source = Provenance.from_ids(jnp.arange(rows, dtype=jnp.int32))
    images = {name: jnp.zeros((rows, 2, 2, 3), jnp.uint8) for name in NAMES}
    return Batch(
        images=images,
        tokens=jnp.zeros((rows, 4), jnp.int32),
        image_source=source,
        text_source=source,
        present=present,
    )


def subsets(kept):
    return [frozenset(np.flatnonzero(row).tolist()) for row in np.asarray(kept)]


def probability(subset, n, p):
    alone = p**n / n if len(subset) == 1 else 0
    return (1 - p) ** len(subset) * p ** (n - len(subset)) + alone


@pytest.mark.parametrize("p", [0.2, 0.7, 1.0])
def test_subsets_are_as_frequent_as_their_law_says(p):
    rows = 20_000
    found = subsets(keep_some(jax.random.key(1), jnp.ones((rows, 3), bool), jnp.float32(p)))
    all_of_them = [frozenset(s) for k in (1, 2, 3) for s in itertools.combinations(range(3), k)]
    want = np.array([probability(s, 3, p) for s in all_of_them])
    assert want.sum() == pytest.approx(1)
    got = np.array([found.count(s) for s in all_of_them])
    assert got.sum() == rows  # no other subset: never none
    possible = want > 0
    assert not got[~possible].any()
    assert stats.chisquare(got[possible], rows * want[possible]).pvalue > 1e-3


def test_only_what_an_example_has_can_stay_and_one_of_it_does():
    present = jnp.asarray([[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]] * 500, bool)
    for p in (0.0, 0.6, 1.0):
        kept = np.asarray(keep_some(jax.random.key(2), present, jnp.float32(p)))
        assert not kept[~np.asarray(present)].any() and kept.any(axis=1).all()
        if p == 0:
            np.testing.assert_array_equal(kept, present)
        if p == 1:
            assert (kept.sum(axis=1) == 1).all()
            assert set(subsets(kept[1::4])) == {frozenset({1}), frozenset({2})}
    none = jnp.zeros((2, 3), bool)  # a row without any, such as padding
    np.testing.assert_array_equal(keep_some(jax.random.key(2), none, jnp.float32(0.5)), none)


def test_draws_are_those_of_seed_and_step_on_any_number_of_devices():
    augmentations = Augmentations.from_config([("modality_dropout", {"drop_rate": 0.5})], towers=GATED, seed=3)
    change = jax.jit(augmentations.change_batch)
    whole = batch(64)
    one, metrics = change(whole, jnp.int32(5))
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    split = jax.device_put(whole, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_array_equal(change(split, jnp.int32(5))[0].present, one.present)
    np.testing.assert_array_equal(change(whole, jnp.int32(5))[0].present, one.present)
    assert not np.array_equal(change(whole, jnp.int32(6))[0].present, one.present)
    assert float(metrics["augment/modality_dropout/kept"]) == pytest.approx(np.asarray(one.present).mean())
    for name in NAMES:
        assert one.images[name].dtype == jnp.uint8


def test_a_rate_may_be_a_schedule():
    module = Augmentation(towers=GATED, drop_rate=Schedule(value=1.0, start=2))
    kept = [module.change(batch(), key=jax.random.key(0), step=jnp.int32(step))[1]["kept"] for step in (1, 2)]
    np.testing.assert_allclose(kept, [1, 1 / 3], rtol=1e-6)


def test_a_tower_without_gates_is_refused_and_rates_are_checked():
    with pytest.raises(ConfigError, match=r"augment\.modality_dropout.*set model\.vision_cfg\.fusion='gated'"):
        features.made("modality_dropout")
    with pytest.raises(ConfigError, match=r"augment\.modality_dropout\.drop_rate=1\.5"):
        Augmentations.from_config([("modality_dropout", {"drop_rate": 1.5})], towers=GATED, seed=0)


def test_augmentations_before_pooling_are_refused_where_gates_follow():
    for name in plugins.names("mmjax.augment"):
        for tap in (None, "tokens@0", "pooled"):
            options = {} if tap is None else {"tap": tap}
            try:
                made = Augmentations.from_config([(name, options)], towers=GATED, seed=0)
            except ConfigError as error:
                assert "tap" in str(error)
                continue
            assert all(tap in ("pooled", "embedding") for tap in made.taps), name
    with pytest.raises(ConfigError, match=r"augment\.tmmda\.tap='tokens@-1'.*fusion='gated'.*leave it out"):
        Augmentations.from_config([("tmmda", {})], towers=GATED, seed=0)
