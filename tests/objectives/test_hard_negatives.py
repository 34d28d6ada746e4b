"""Objectives with hard negatives: their equations, and what holds for any of them, in every implementation."""

import functools

import jax
import numpy as np
import pytest

from mmjax.core import plugins
from mmjax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from support import objectives_reference as reference
from support.objective_problems import arguments, computing, hard_problem

CASES = {
    "negclip": ({}, reference.clip),
    "cft": ({}, reference.cft),
}
"""Names (with a suffix where there are several) to options and the loss as a function of ``reference.Sides``."""

WITHOUT_NEGATIVES_CLIP = ("negclip",)


@functools.cache
def compiled(case, impl="dense", devices=1):
    sharding = batch_sharding(make_mesh(MeshConfig(), devices=jax.devices()[:devices])) if devices > 1 else None
    section = {"name": case.split()[0], "impl": impl, "chunk": 3, **CASES[case][0]}
    objective = plugins.make("mmjax.objectives", "Objective", section, path="objective", row_sharding=sharding)
    return jax.jit(computing(objective))


def expected(case, problem):
    """The float64 loss and its gradients by images, texts and scale."""
    image, text, image_source, text_source, scale, _ = problem

    def loss(image, text, scale):
        return CASES[case][1](reference.Sides(image, text, image_source, text_source, scale))

    return loss(image, text, scale), reference.numeric_gradient(loss, (image, text, scale))


def assert_close(got, want, *, atol=1e-5):
    (value, metrics), gradients = got
    np.testing.assert_allclose(value, want[0], atol=atol)
    for a, b in zip(gradients, want[1], strict=False):
        np.testing.assert_allclose(a, b, atol=atol)
    np.testing.assert_allclose(gradients[3], 0, atol=1e-6)  # a bias moves no logit against another
    assert all(np.isfinite(m) and m.shape == () for m in metrics.values())


cases = pytest.mark.parametrize("case", CASES)


@cases
def test_loss_and_gradients_equal_the_equations(case):
    for seed in range(2):
        problem = hard_problem(seed)
        assert_close(compiled(case)(*arguments(problem)), expected(case, problem))


@cases
@pytest.mark.parametrize(("impl", "devices"), [("chunked", 1), ("ring", 8)])
def test_every_implementation_gives_the_same(case, impl, devices):
    """Six images and twenty texts: neither tiles nor devices divide them."""
    problem = arguments(hard_problem(0))
    got, want = compiled(case, impl, devices)(*problem), compiled(case)(*problem)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-6)


@cases
def test_masked_negatives_change_nothing_and_have_no_gradient(case):
    image, text, image_source, (ids, weight), *rest = hard_problem(1)
    negative = weight[:, 0] == 0
    ids = np.where(negative[:, None], -1, ids)
    noise = np.random.default_rng(0).normal(size=text.shape)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    results = [
        compiled(case)(*arguments((image, z, image_source, (ids, weight), *rest)))
        for z in (text, np.where(negative[:, None], noise, text))
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert not np.any(np.asarray(results[0][1][1])[negative])
    if case in WITHOUT_NEGATIVES_CLIP:
        p = (image, text, image_source, (ids, weight), *rest)
        wanted = reference.clip(reference.Sides(*p[:5]))
        np.testing.assert_allclose(results[0][0][0], wanted, atol=1e-5)


@cases
def test_permuted_negatives_change_nothing(case):
    image, text, image_source, (ids, weight), *rest = hard_problem(2)
    order = np.arange(len(text))
    negative = np.flatnonzero(weight[:, 0] == 0)
    order[negative] = np.roll(negative, 3)
    shuffled = image, text[order], image_source, (ids[order], weight[order]), *rest
    (value, _), gradients = compiled(case)(*arguments((image, text, image_source, (ids, weight), *rest)))
    (again, _), permuted = compiled(case)(*arguments(shuffled))
    np.testing.assert_allclose(again, value, rtol=2e-6)
    np.testing.assert_allclose(permuted[0], gradients[0], atol=2e-6)
    np.testing.assert_allclose(permuted[1], np.asarray(gradients[1])[order], atol=2e-6)


@cases
def test_rows_without_any_positive_give_finite_numbers(case):
    image, text, (ii, iw), (ti, tw), *rest = hard_problem(3)
    nobody = arguments((image, text, (ii, 0 * iw), (ti, 0 * tw), *rest))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(compiled(case)(*nobody)))
    alone = arguments((image, text, (ii, iw), (np.where(ti == 2, ti, -1), tw), *rest))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(compiled(case)(*alone)))
