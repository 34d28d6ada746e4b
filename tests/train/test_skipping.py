"""A step whose loss or gradients are not finite changes nothing but the step's number, in the compiled step itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.train.augmentation import Augmentations
from support import poison, tiny
from support.training import assembled


class Stepper:
    """One compiled step over states that live on the host, so that a state can be used again."""

    def __init__(self, experiment, devices):
        self.program, batches = assembled(experiment, jax.devices()[:devices])
        self.batches = [next(batches) for _ in range(4)]
        batches.close()
        self.compiled = self.program.trace(self.program.batch_shape(self.batches[0])).lower().compile()
        self.start = jax.device_get(self.program.initialize())

    def __call__(self, state, batch, *, weight=1.0):
        arrays = self.batches[batch]
        weights = arrays["image_weight"].copy()
        weights[0] *= weight
        placed = jax.tree.map(jax.device_put, state, self.program.shardings)
        state, metrics = self.compiled(placed, self.program.place(arrays | {"image_weight": weights}))
        return jax.device_get(state), {name: float(value) for name, value in metrics.items()}


OVERFLOW = 77
"""After so many updates the gradient of the augmentation is made infinite, and no other number."""


def counts(opt_state):
    return [leaf for leaf in jax.tree.leaves(opt_state) if leaf.dtype == jnp.int32]


def with_updates(own, number):
    opt_state = jax.tree.map(lambda x: np.full_like(x, number) if x.dtype == np.int32 else x, own.opt_state)
    return dataclasses.replace(own, opt_state=opt_state)


OPTIONS = {"optimizer__ema_decay": 0.9, "augment": (("lemda", {"weight": 0.5}),), "optimizer__warmup_steps": 3}


@pytest.fixture(scope="module", autouse=True)
def spoilable():
    real = Augmentations.update

    def update(self, grads, states):
        (count, *_) = counts(states["lemda"].opt_state)
        factor = jnp.where(count == OVERFLOW, jnp.inf, 1.0)
        return real(self, jax.tree.map(lambda gradient: gradient * factor, grads), states)

    with pytest.MonkeyPatch.context() as patch:
        poison.prepare(patch.setattr)
        patch.setattr(Augmentations, "update", update)
        yield


@pytest.fixture(scope="module")
def alone():
    return Stepper(tiny.experiment(mesh__data=1, **OPTIONS), 1)


@pytest.fixture(scope="module")
def split():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmjax.parallel.sharding.FSDP_MIN_SIZE", 1)
        return Stepper(tiny.experiment(mesh__data=2, mesh__fsdp=4, **OPTIONS), 8)


def at(state, step):
    return dataclasses.replace(state, step=np.int32(step))


def assert_equal(a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def assert_changed(a, b):
    """Every part of the state, so that a part which never changes cannot pass for one that was kept."""
    for part in ("params", "opt_state", "ema_params", "augment"):
        leaves = zip(jax.tree.leaves(getattr(a, part)), jax.tree.leaves(getattr(b, part)), strict=True)
        assert any(not np.array_equal(x, y) for x, y in leaves), part


@pytest.mark.parametrize("name", ["alone", pytest.param("split", marks=pytest.mark.slow)])
def test_a_bad_step_leaves_all_but_the_step_and_the_run_goes_on_as_if_it_had_not_been(name, request):
    step = request.getfixturevalue(name)
    good, metrics = step(step.start, 0)
    assert (metrics["rejected_update"], metrics["rejected_updates"]) == (0, 0)
    assert_changed(good, step.start)
    bad, metrics = step(good, 1, weight=np.nan)
    assert not np.isfinite(metrics["gradient_norm"])
    assert (metrics["rejected_update"], metrics["rejected_updates"]) == (1, 1)
    assert_equal(bad, at(good, 2))
    twice, metrics = step(bad, 2, weight=np.inf)
    assert (metrics["rejected_update"], metrics["rejected_updates"]) == (1, 2)
    assert_equal(twice, at(good, 3))
    after, metrics = step(twice, 3)
    want, reference = step(at(good, 3), 3)
    assert_equal(after, want)
    assert (metrics["rejected_update"], metrics["rejected_updates"]) == (0, 2)
    assert metrics == reference
    assert_changed(after, good)


def test_the_learning_rate_that_is_reported_is_the_one_that_was_used(alone):
    rates = []
    state = alone.start
    for weight in (1.0, np.nan, np.nan, 1.0):
        state, metrics = alone(state, 0, weight=weight)
        rates.append(metrics["learning_rate"])
    peak = alone.program.experiment.optimizer.learning_rate
    # The warm-up of three steps goes on with each update, however many were skipped between them.
    np.testing.assert_allclose(rates, [peak / 3, peak * 2 / 3, peak * 2 / 3, peak * 2 / 3], rtol=1e-6)


def test_parameters_that_are_no_numbers_are_not_spread_to_the_moments(alone):
    params = jax.tree.map(np.array, alone.start.params)
    params["text"]["proj"]["kernel"][0, 0] = np.nan
    state = dataclasses.replace(alone.start, params=params)
    after, metrics = alone(state, 0)
    assert metrics["rejected_update"] == 1
    assert_equal(after, at(state, 1))


def test_an_augmentation_whose_own_gradient_is_not_finite_stops_the_model_too(alone):
    state = dataclasses.replace(alone.start, augment={"lemda": with_updates(alone.start.augment["lemda"], OVERFLOW)})
    after, metrics = alone(state, 0)
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"])
    assert not np.isfinite(metrics["augment/lemda/gradient_norm"])
    assert metrics["rejected_update"] == 1
    assert_equal(after, at(state, 1))


def test_the_state_is_still_updated_in_place(alone):
    memory = alone.compiled.memory_analysis()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(alone.start))
    assert memory.alias_size_in_bytes == size
