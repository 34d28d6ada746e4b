"""Gates over modalities: what they compute, and that an absent modality counts for nothing."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from mmjax.core.config import ConfigError
from mmjax.models.vision.gates import Gates
from mmjax.runs.start_weights import ArrayFile
from mmjax.weights.pretrained import Pretrained
from mmjax.weights.rules import SAME, Rule
from support import clip_models
from support.towers_reference import gated

NAMES = ("image", "depth", "thermal")
WIDTH, ROWS = 6, 16


@pytest.fixture(scope="module")
def made():
    """Gates with every parameter random, features of all modalities, and who has which: all subsets but the empty."""
    random = np.random.default_rng(0)
    gates = Gates(NAMES, WIDTH, rngs=nnx.Rngs(0), dtype=jnp.float32)
    gates.score.kernel[...] = jnp.asarray(random.normal(size=(WIDTH, WIDTH)), jnp.float32)
    gates.modality_bias[...] = jnp.asarray(random.normal(size=(3, WIDTH)), jnp.float32)
    features = jnp.asarray(random.normal(size=(3, ROWS, WIDTH)), jnp.float32)
    present = jnp.asarray([[(1 + i % 7) >> m & 1 for m in range(3)] for i in range(ROWS)], bool)
    return gates, features, present


def fuse(gates, features, present, names=NAMES):
    return gates(features.reshape(-1, WIDTH), present, names=names)


def test_gates_are_their_equations_for_every_subset(made):
    gates, features, present = made
    kernel, bias = (np.asarray(x[...], np.float64) for x in (gates.score.kernel, gates.modality_bias))
    got = np.asarray(fuse(gates, features, present))
    for i, has in enumerate(np.asarray(present)):
        want = gated(np.asarray(features, np.float64)[has, i], kernel, bias[has])
        np.testing.assert_allclose(got[i], want, rtol=1e-5, atol=1e-6)
    weights = np.asarray(gates.weights(features, present.T[..., None], names=NAMES))
    assert not weights[~np.asarray(present).T].any()
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-6)


def test_what_is_absent_by_a_mask_is_absent_as_if_it_were_not_given(made):
    gates, features, _ = made
    for columns in ([0], [1], [0, 2], [1, 2], [0, 1, 2]):
        mask = jnp.zeros((ROWS, 3), bool).at[:, jnp.asarray(columns)].set(True)
        names = [NAMES[m] for m in columns]
        want = fuse(gates, features[jnp.asarray(columns)], None, names)
        np.testing.assert_allclose(fuse(gates, features, mask), want, atol=1e-6)
        if len(columns) == 1:
            np.testing.assert_array_equal(want, features[columns[0]])


def test_an_absent_modality_changes_no_bit_whatever_it_holds_and_has_no_gradient(made):
    gates, features, present = made
    absent = ~present.T[..., None]
    for other in (0.0, 1e30, jnp.nan, -jnp.inf):
        changed = jnp.where(absent, other, features)
        np.testing.assert_array_equal(fuse(gates, changed, present), fuse(gates, features, present))
    graph, state = nnx.split(gates)

    def total(params, features):
        return jnp.sum(jnp.square(fuse(nnx.merge(graph, params), features, present)))

    for value in (features, jnp.where(absent, jnp.nan, features)):
        of_params, of_features = jax.grad(total, argnums=(0, 1))(state, value)
        assert not np.asarray(of_features)[np.asarray(absent)[..., 0]].any()
        assert np.abs(np.asarray(of_features)[np.asarray(present.T)]).min(axis=-1).max() > 0
        assert all(np.isfinite(x).all() and x.any() for x in jax.tree.leaves(jax.device_get(of_params)))


def test_without_any_modality_the_row_is_zero_and_others_do_not_notice(made):
    gates, features, present = made
    none = present.at[3].set(False)
    got = np.asarray(fuse(gates, features, none))
    assert not got[3].any()
    np.testing.assert_array_equal(np.delete(got, 3, 0), np.delete(np.asarray(fuse(gates, features, present)), 3, 0))


def test_training_starts_from_the_mean_of_what_is_there(made):
    _, features, present = made
    gates = Gates(NAMES, WIDTH, rngs=nnx.Rngs(1), dtype=jnp.float32)
    has = np.asarray(present).T[..., None]
    mean = (np.asarray(features) * has).sum(0) / has.sum(0)
    np.testing.assert_allclose(fuse(gates, features, present), mean, atol=1e-6)


def test_one_device_equals_eight(made):
    gates, features, present = made
    rows = NamedSharding(jax.make_mesh((8,), ("data",), (AxisType.Auto,)), PartitionSpec("data"))
    run = jax.jit(lambda features, present: gates(features, present, names=NAMES))
    flat = features.reshape(-1, WIDTH)
    split = run(jax.device_put(flat, rows), jax.device_put(present, rows))
    np.testing.assert_allclose(split, run(flat, present), rtol=1e-6, atol=1e-7)


def test_in_bfloat16_gates_are_weighed_in_float32():
    gates = Gates(NAMES, WIDTH, rngs=nnx.Rngs(1), dtype=jnp.bfloat16)
    same = jnp.full((3, 2, WIDTH), 1.5, jnp.bfloat16)
    assert fuse(gates, same, None).dtype == jnp.bfloat16
    np.testing.assert_array_equal(fuse(gates, same, None).astype(jnp.float32), 1.5)


def test_gates_of_other_modalities_are_no_weights_to_start_from():
    def config(*names):
        vision = {"modalities": names, "modality_channels": (3,) * len(names), "fusion": "gated"}
        return clip_models.config(vision=vision)

    bias, kernel = "visual/gates/modality_bias", "visual/patch_embed/kernel"
    arrays = {bias: np.arange(4.0, dtype=np.float32).reshape(2, 2), kernel: np.zeros(3, np.float32)}
    one = SingleDeviceSharding(jax.devices()[0])
    target = {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one) for path, x in arrays.items()}
    rules = [Rule((path,), path, SAME) for path in arrays]
    weights = Pretrained(spec="run", config=config("image", "depth"), file=ArrayFile(Path("run"), arrays), rules=rules)
    np.testing.assert_array_equal(weights.read(config("image", "depth"), target).params[bias], arrays[bias])
    with pytest.raises(
        ConfigError, match=r"modalities=\('depth', 'image'\): .*for \('image', 'depth'\) in visual/gates"
    ):
        weights.read(config("depth", "image"), target)
    assert weights.read(config("depth", "image"), target, drop=(bias,)).missing == [bias]


def test_models_that_gates_do_not_fit_are_refused():
    with pytest.raises(
        ConfigError, match=r"vision_cfg\.fusion='gated'.*data\.modalities=\('image',\) is one; name two"
    ):
        clip_models.split(clip_models.config(vision={"fusion": "gated"}))
    pair = {"modalities": ("image", "depth"), "modality_channels": (3, 3), "fusion": "gated"}
    with pytest.raises(ConfigError, match=r"fusion='gated'.*leave out model\.fusion and model\.decoder"):
        clip_models.config(vision=pair, decoder={"width": 8, "heads": 2, "layers": 1})
