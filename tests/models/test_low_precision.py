"""Products of 8-bit numbers against numpy's, their errors' bounds, and a model that trains with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.models.low_precision import check_matmul_precision, product, quantize_rows
from support import clip_models, tiny
from support.training import trained

KINDS = pytest.mark.parametrize("kind", ["int8", "fp8"])


def operands(*, n=48, k=96, m=32, dtype=np.float32, seed=0):
    """Rows of sizes far apart, a row and a column of zeros; and a gradient of the product."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, k)) * 10.0 ** random.integers(-4, 5, (n, 1))
    kernel, gradient = random.normal(size=(k, m)), random.normal(size=(n, m)) * 1e-6
    x[3], kernel[:, 5], gradient[7] = 0, 0, 0
    return tuple(jnp.asarray(v, dtype) for v in (x, kernel, gradient))


@functools.cache
def compiled(kind):
    def both(x, kernel, gradient):
        y, pull = jax.vjp(functools.partial(product, precision=kind), x, kernel)
        return y, *pull(gradient)

    return jax.jit(both)


def exact(rows, dtype):
    """What 8 bits leave of each row, in float64."""
    q, scale = quantize_rows(rows, dtype)
    return np.asarray(q.astype(jnp.float32), np.float64) * np.asarray(scale, np.float64)


def numbers(kind):
    return (jnp.int8, jnp.int8) if kind == "int8" else (jnp.float8_e4m3fn, jnp.float8_e5m2)


@KINDS
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_are_numpys_of_rounded_numbers(kind, dtype):
    x, kernel, gradient = operands(dtype=dtype)
    kernel = kernel.astype(jnp.float32)
    y, by_x, by_kernel = compiled(kind)(x, kernel, gradient)
    assert (y.dtype, by_x.dtype, by_kernel.dtype) == (dtype, dtype, jnp.float32)
    values, gradients = numbers(kind)
    wanted = exact(x, values) @ exact(kernel.T, values).T
    wanted_by_x = exact(gradient, gradients) @ exact(kernel, values).T
    tolerance = 1e-5 if dtype == jnp.float32 else 5e-3
    for got, want in ((y, wanted), (by_x, wanted_by_x)):
        error = np.abs(np.asarray(got, np.float64) - want).max(axis=1)
        assert (error <= tolerance * np.abs(want).max(axis=1)).all()
    whole = np.asarray(x, np.float64).T @ np.asarray(gradient, np.float64)
    np.testing.assert_allclose(by_kernel, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


@KINDS
def test_errors_are_those_of_rounding(kind):
    """Each number is off by half a step at most: of 127 of its row's largest, or of its own four bits or three."""
    x, kernel, gradient = operands(k=64)
    for rows, dtype, bits in zip((x, gradient), numbers(kind), (4, 3), strict=True):
        largest = np.abs(rows).max(axis=1, keepdims=True)
        allowed = largest / 254 if kind == "int8" else np.maximum(np.abs(rows) * 2.0**-bits, largest * 2.0**-17)
        assert (np.abs(exact(rows, dtype) - rows) <= 1.001 * allowed).all()
        assert (np.abs(exact(rows, dtype)).max(axis=1) >= 0.99 * largest[:, 0]).all()
    # Half steps lie evenly: one operand's error is a step / sqrt(12), and both operands have one.
    y, by_x, _ = compiled(kind)(x, kernel, gradient)
    limits = (0.02, 0.02) if kind == "int8" else (0.07, 0.12)
    for got, want, limit in zip((y, by_x), (x @ kernel, gradient @ kernel.T), limits, strict=True):
        error = np.linalg.norm(got - want, axis=1) / np.maximum(np.linalg.norm(want, axis=1), 1e-30)
        assert limit / 20 < error.max() < limit
    assert not np.any(y[3]) and not np.any(y[:, 5]) and not np.any(by_x[7])


def test_a_row_is_rounded_by_itself():
    x, kernel, gradient = operands()
    one = compiled("int8")(x, kernel, gradient)[0]
    other = compiled("int8")(x.at[0].mul(1e6), kernel, gradient)[0]
    np.testing.assert_array_equal(one[1:], other[1:])


@functools.cache
def tower(precision):
    """A tower in a loop with attention pooling: its value and gradients, and parameters."""
    config = clip_models.config(vision={"pool_type": "map", "class_token": False}, matmul_precision=precision)
    graph, shapes = clip_models.split(config, dtype=jnp.bfloat16)
    images = clip_models.images(config, n=4)

    def value(params):
        return jnp.sum(jnp.sin(clip_models.model(graph, params).encode_image(images)))

    params = clip_models.random_params(shapes)
    return value, params, jax.jit(jax.grad(value))(params)["visual"]


def small_products(jaxpr):
    """How many products of 8-bit numbers there are, those in loops once."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total += all(v.aval.dtype.itemsize == 1 for v in equation.invars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            total += small_products(inner) if hasattr(inner, "eqns") else 0
    return total


@KINDS
def test_only_the_blocks_multiply_such_numbers_and_gradients_point_the_same_way(kind):
    """Stem, pooling and projection multiply what they always did."""
    value, params, low = tower(kind)
    assert small_products(jax.make_jaxpr(value)(params).jaxpr) == 6  # of a block: q, k, v, out, and the MLP's two
    assert small_products(jax.make_jaxpr(tower("full")[0])(params).jaxpr) == 0
    assert small_products(jax.make_jaxpr(jax.grad(value))(params).jaxpr) >= 12
    full, low = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)]) for tree in (tower("full")[2], low))
    cosine = jnp.sum(full * low) / jnp.linalg.norm(full) / jnp.linalg.norm(low)
    assert 0.95 < cosine < 0.99999


def test_a_device_that_does_not_multiply_them_is_named(monkeypatch):
    def refuse(*args, **kwargs):
        raise NotImplementedError("no such product\nat length")

    device = jax.devices()[0]
    for kind in ("full", "int8", "fp8"):
        check_matmul_precision(kind, device)
    monkeypatch.setattr(jax.lax, "dot_general", refuse)
    check_matmul_precision("full", device)
    with pytest.raises(
        ConfigError, match=r"model\.matmul_precision='fp8': cpu cannot .* \(no such product\); use 'full'"
    ):
        check_matmul_precision("fp8", device)


@pytest.mark.slow
@KINDS
def test_a_run_with_them_learns_as_one_without(kind):
    """At a rate that learns smoothly: in a start that overshoots, rounding alone moves a loss by several per cent."""
    losses = {}
    for precision in ("full", kind):
        experiment = tiny.experiment(
            model__matmul_precision=precision, precision="bfloat16", steps=40, optimizer__learning_rate=2e-3
        )
        losses[precision] = np.array([metrics["loss"] for _, metrics in trained(experiment, steps=40, devices=2)])
    np.testing.assert_allclose(losses[kind], losses["full"], rtol=0.03)
    assert losses[kind][-5:].mean() < np.log(16) - 0.1  # it has learned: chance among 16 pairs is log 16
    assert not np.array_equal(losses[kind], losses["full"])
