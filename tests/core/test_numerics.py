"""Small numeric helpers at the sizes of a large batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.numerics import broadcast_parameter

ROWS, WIDTH = 200_000, 8


@pytest.mark.parametrize("mean", [1.0, 0.0])
def test_of_200_000_bfloat16_rows_nothing_is_lost_to_the_gradient(mean):
    random = np.random.default_rng(0)
    rows = jnp.asarray(random.normal(mean, 1.0, (ROWS, WIDTH)), jnp.bfloat16)

    @jax.jit
    def gradient(bias):
        return jax.vjp(lambda bias: broadcast_parameter(bias, rows.shape, rows.dtype), bias)[1](rows)[0]

    got, exact = gradient(jnp.ones(WIDTH)), np.asarray(rows, np.float64)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact.sum(0), rtol=0, atol=1e-6 * np.abs(exact).sum(0).max())


def test_a_copy_is_the_parameter_rounded_once():
    parameter = jnp.asarray(np.random.default_rng(1).normal(size=(3, WIDTH)), jnp.float32)
    got = broadcast_parameter(parameter, (5, 3, WIDTH), jnp.bfloat16)
    np.testing.assert_array_equal(got, np.broadcast_to(parameter.astype(jnp.bfloat16), got.shape))
