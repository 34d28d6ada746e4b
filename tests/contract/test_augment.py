"""What every augmentation promises, by walking the plug-in folder."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.augment.common.batch_change import BatchChange, PixelChange
from mmjax.augment.common.sequence_dropout import SequenceDropout
from mmjax.core import plugins
from mmjax.core.config import ConfigError
from support import features, tiny
from support.training import trained

FOLDER = "mmjax.augment"
NAMES = plugins.names(FOLDER)
LATE = 2  # the step at which the weight stops being zero


def augmentation(name):
    return plugins.load(FOLDER, name, path="augment").Augmentation


SEQUENCE_DROPOUTS = [name for name in NAMES if issubclass(augmentation(name), SequenceDropout)]
PIXEL_CHANGES = [name for name in NAMES if issubclass(augmentation(name), PixelChange)]
WITH_VIEWS = [
    name for name in NAMES if name not in SEQUENCE_DROPOUTS and not issubclass(augmentation(name), BatchChange)
]
# The two with networks of their own compile for 10 s and more.
LARGE_ONES_SLOW = [
    pytest.param(name, marks=pytest.mark.slow) if name in ("lemda", "tmmda") else name for name in WITH_VIEWS
]


def learned(augmentations):
    return {name: own.params for name, own in jax.jit(augmentations.init_states)().items()}


def finite(tree):
    return all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(tree))


def test_the_folder_is_not_empty_and_shared_modules_are_no_plugins():
    assert "latent_noise" in WITH_VIEWS and "patch_dropout" in SEQUENCE_DROPOUTS and "style" in PIXEL_CHANGES
    assert not {"common", "base"} & set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_augmentation_is_documented_and_every_option_has_a_default(name):
    cls = augmentation(name)
    assert plugins.load(FOLDER, name, path="augment").__doc__
    equations, _, arguments = cls.__doc__.partition("Args:")
    assert "arXiv" in equations and "::" in equations
    described = {name.strip() for line in arguments.splitlines() for name in line.partition(":")[0].split(",")}
    for option, parameter in inspect.signature(cls.__init__).parameters.items():
        if option not in ("self", "towers", "rngs"):
            assert parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty, option
            assert option in described, option


@pytest.mark.slow
def test_in_the_step_weights_of_zero_change_no_bit_and_their_schedules_compile_once():
    """All of them at once, in the program that training compiles, whose fusions could round otherwise."""
    late = {"value": 0.5, "start": LATE}
    off = {name: {"drop_rate": 0.0} for name in SEQUENCE_DROPOUTS} | {name: {"alpha": 0.0} for name in PIXEL_CHANGES}
    augment = tuple((name, off.get(name, {"weight": late})) for name in NAMES if name in (*off, *WITH_VIEWS))
    plain = trained(tiny.experiment(), steps=LATE + 1, optimised=True)
    history = trained(tiny.experiment(augment=augment), steps=LATE + 1, optimised=True)
    leaves = lambda step, of: jax.tree.leaves(of[step][0].params)  # noqa: E731
    for step in range(LATE):
        for a, b in zip(leaves(step, history), leaves(step, plain), strict=True):
            np.testing.assert_array_equal(a, b)
        assert all(history[step][1][m] == plain[step][1][m] for m in plain[step][1])
    state, metrics = history[LATE]
    assert finite(state) and finite(metrics)
    assert jax.tree.structure(state.params) == jax.tree.structure(plain[LATE][0].params)
    for name in WITH_VIEWS:
        assert history[0][1][f"augment/{name}/weight"] == 0 and metrics[f"augment/{name}/weight"] == 0.5
        assert len([m for m in metrics if m.startswith(f"augment/{name}/")]) > 2
    moved = [not np.array_equal(a, b) for a, b in zip(leaves(LATE, history), leaves(LATE, plain), strict=True)]
    assert np.mean(moved) > 0.5


@pytest.mark.parametrize("name", WITH_VIEWS)
def test_it_is_a_function_of_seed_and_step(name):
    augmentations, params = features.made(name), features.head_params()
    start, at_tap = learned(augmentations), features.fitting(augmentations)

    @jax.jit
    def call(seed, step):
        return features.added(dataclasses.replace(augmentations, seed=seed), start, params, at_tap, step=step)

    def same(a, b):
        return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

    one = call(0, 4)
    assert same(one, call(0, 4))
    assert same(one, call(1, 4)) == same(one, call(0, 5))  # one without randomness depends on neither


CASES = {
    "large": {"scale": 1e4},
    "identical": {},
    "padding": {"padded": 3},
    "all padding": {"padded": 8},
    "zero": {"scale": 0.0},
    "several": {"texts": 3, "views": 2},
}


@pytest.mark.parametrize("name", LARGE_ONES_SLOW)
def test_values_and_gradients_are_finite_in_bfloat16(name):
    augmentations = features.made(name)
    start = learned(augmentations)
    for case, how in CASES.items():
        at_tap, params = features.fitting(augmentations, dtype=jnp.bfloat16, **how), features.head_params()
        if case == "identical":  # all rows of both sides end at one point
            ones = jnp.ones_like
            at_tap = features.replaced(at_tap, ones(at_tap.image), ones(at_tap.text))
            params |= {"visual": ones(params["visual"]), "text": ones(params["text"])}
        assert finite(features.gradients(augmentations, start, params, at_tap)), case


@pytest.mark.parametrize("name", WITH_VIEWS)
def test_a_weight_of_zero_adds_nothing_and_has_no_gradient(name):
    augmentations = features.made(name, weight=0.0)
    at_tap, params = features.fitting(augmentations), features.head_params()
    value, _, grads = features.gradients(augmentations, learned(augmentations), params, at_tap)
    assert value == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", LARGE_ONES_SLOW)
def test_one_device_equals_eight(name):
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    augmentations, params = features.made(name), features.head_params()
    start, at_tap = learned(augmentations), features.fitting(augmentations, n=16)
    want = features.gradients(augmentations, start, params, at_tap)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    split = features.replaced(at_tap, jax.device_put(at_tap.image, rows), jax.device_put(at_tap.text, rows))
    whole = NamedSharding(mesh, PartitionSpec())
    start, params = jax.device_put((start, params), whole)
    got = features.gradients(augmentations, start, params, split)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), got, want)


@pytest.mark.parametrize("name", WITH_VIEWS)
def test_an_unknown_option_is_named_with_its_augmentation(name):
    with pytest.raises(ConfigError, match=rf"augment\.{name}\.wieght=1: unknown key; did you mean 'weight'"):
        features.made(name, wieght=1)
    with pytest.raises(ConfigError, match=rf"augment\.{name}\.weight=-1"):
        features.made(name, weight=-1.0)
