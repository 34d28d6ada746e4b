"""Every objective in the folder: documented, finite, blind to padding and to the order of rows, and it learns."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import plugins
from mmjax.core.types import Provenance

NAMES = plugins.names("mmjax.objectives")


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def rows(seed, n, d=8):
    return np.asarray(jax.random.normal(jax.random.key(seed), (n, d)))


IMAGE_IDS, TEXT_IDS = np.arange(6), np.array([0, 0, 1, 2, 3, 4, 5, 5, 5])
ONE_TEXT_EACH = np.append(np.arange(6), [-1] * 3)


@functools.cache
def compiled(name):
    """Loss, metrics and gradients of unit rows of these; one program for all tests."""
    objective = plugins.load("mmjax.objectives", name, path="objective.name").Objective()

    def loss(image, text, image_ids, text_ids, scale):
        sources = {"image_source": Provenance.from_ids(image_ids), "text_source": Provenance.from_ids(text_ids)}
        return objective(unit(image), unit(text), **sources, scale=scale, bias=jnp.float32(-1.0))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def call(name, image, text, image_ids, text_ids, scale=5.0):
    return compiled(name)(image, text, *map(np.int32, (image_ids, text_ids)), np.float32(scale))


@pytest.mark.parametrize("name", NAMES)
def test_it_says_its_equation_and_takes_the_two_labellings(name):
    cls = plugins.load("mmjax.objectives", name, path="objective.name").Objective
    assert "loss =" in inspect.getdoc(cls) and "arXiv" in inspect.getdoc(cls)
    for targets in ("provenance", "identity"):
        plugins.make("mmjax.objectives", "Objective", {"name": name, "targets": targets}, path="objective")


@pytest.mark.parametrize("name", NAMES)
def test_rows_may_come_in_any_order_and_number(name):
    image, text = rows(0, 6), rows(1, 9)
    (value, metrics), _ = call(name, image, text, IMAGE_IDS, TEXT_IDS)
    p, q = np.random.default_rng(0).permutation(6), np.random.default_rng(1).permutation(9)
    (again, _), _ = call(name, image[p], text[q], IMAGE_IDS[p], TEXT_IDS[q])
    np.testing.assert_allclose(again, value, rtol=1e-5)
    assert value.shape == () and value.dtype == jnp.float32
    assert all(np.isfinite(m) and m.shape == () for m in metrics.values())


@pytest.mark.parametrize("name", NAMES)
def test_gradient_descent_pairs_what_belongs_together(name):
    z = rows(0, 6), rows(1, 9)
    losses = []
    for _ in range(200):
        (value, _), gradients = call(name, *z, IMAGE_IDS, ONE_TEXT_EACH)
        z = tuple(x - 0.3 * np.asarray(gradient) for x, gradient in zip(z, gradients, strict=True))
        losses.append(value)
    assert losses[-1] < losses[0]
    similarity = unit(z[0]) @ unit(z[1][:6]).T
    np.testing.assert_array_equal(np.argmax(similarity, 1), IMAGE_IDS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_extreme_scales_and_identical_rows_stay_finite(name, scale):
    same = np.ones((9, 8), np.float32)
    (value, _), gradients = call(name, same[:6], same, IMAGE_IDS, ONE_TEXT_EACH, scale)
    assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)
