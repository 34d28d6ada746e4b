"""Every objective in the folder: documented, finite, blind to padding and to the order of rows, and it learns."""

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
    return jax.random.normal(jax.random.key(seed), (n, d))


def call(name, image, text, image_ids, text_ids, scale=5.0):
    objective = plugins.load("mmjax.objectives", name, path="objective.name").Objective()
    return objective(
        unit(image),
        unit(text),
        image_source=Provenance.from_ids(jnp.asarray(image_ids, jnp.int32)),
        text_source=Provenance.from_ids(jnp.asarray(text_ids, jnp.int32)),
        scale=jnp.float32(scale),
        bias=jnp.float32(-1.0),
    )


@pytest.mark.parametrize("name", NAMES)
def test_it_says_its_equation_and_takes_the_two_labellings(name):
    cls = plugins.load("mmjax.objectives", name, path="objective.name").Objective
    assert "loss =" in inspect.getdoc(cls) and "arXiv" in inspect.getdoc(cls)
    for targets in ("provenance", "identity"):
        plugins.make("mmjax.objectives", "Objective", {"name": name, "targets": targets}, path="objective")


@pytest.mark.parametrize("name", NAMES)
def test_rows_may_come_in_any_order_and_number(name):
    image, text = rows(0, 6), rows(1, 9)
    image_ids, text_ids = np.arange(6), np.array([0, 0, 1, 2, 3, 4, 5, 5, 5])
    value, metrics = call(name, image, text, image_ids, text_ids)
    p, q = np.random.default_rng(0).permutation(6), np.random.default_rng(1).permutation(9)
    again, _ = call(name, image[p], text[q], image_ids[p], text_ids[q])
    np.testing.assert_allclose(again, value, rtol=1e-5)
    assert value.shape == () and value.dtype == jnp.float32
    assert all(np.isfinite(m) and m.shape == () for m in metrics.values())


@pytest.mark.parametrize("name", NAMES)
def test_gradient_descent_pairs_what_belongs_together(name):
    ids = np.arange(8)
    loss = jax.jit(lambda z: call(name, z[0], z[1], ids, ids)[0])
    z = jnp.stack([rows(0, 8), rows(1, 8)])
    before = loss(z)
    for _ in range(200):
        z = z - 0.3 * jax.grad(loss)(z)
    assert loss(z) < before
    similarity = unit(z[0]) @ unit(z[1]).T
    np.testing.assert_array_equal(jnp.argmax(similarity, 1), ids)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_extreme_scales_and_identical_rows_stay_finite(name, scale):
    same = jnp.ones((4, 8))
    value, grad = jax.value_and_grad(lambda z: call(name, z, z, np.arange(4), np.arange(4), scale)[0])(same)
    assert np.isfinite(value) and np.isfinite(grad).all()
