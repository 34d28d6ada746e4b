import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.augment.common.divergences import jensen_shannon

LN2 = float(np.log(2))


def reference(a, b, where=None):
    """The definition in float64, over the entries that count."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    where = np.broadcast_to(True if where is None else where, a.shape)
    out = np.zeros(a.shape[:-1])
    for i in np.ndindex(out.shape):
        x, y = a[i][where[i]], b[i][where[i]]
        if not len(x):
            continue
        p, q = (np.exp(v - v.max()) / np.exp(v - v.max()).sum() for v in (x, y))
        m = (p + q) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            out[i] = 0.5 * sum(np.nansum(np.where(r > 0, r * np.log(r / m), 0.0)) for r in (p, q))
    return out


def logits(seed, shape=(3, 4, 7), scale=3.0):
    return scale * np.random.default_rng(seed).normal(size=shape)


value = jax.jit(jensen_shannon)
gradients = jax.jit(jax.grad(lambda a, b, where: jnp.sum(jensen_shannon(a, b, where=where)), argnums=(0, 1)))


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_it_is_the_definition(scale):
    a, b = logits(0, scale=scale), logits(1, scale=scale)
    got = value(jnp.float32(a), jnp.float32(b))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, reference(a, b), rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(got, value(jnp.float32(b), jnp.float32(a)), rtol=1e-6, atol=1e-8)
    assert np.all(got >= -1e-7) and np.all(got <= LN2 + 1e-6)


def test_equal_distributions_are_at_exactly_zero_and_disjoint_ones_at_the_logarithm_of_two():
    a = jnp.float32(logits(0, scale=60.0))
    assert not np.any(value(a, a))
    assert not any(np.any(g) for g in gradients(a, a, jnp.ones(7, bool)))
    np.testing.assert_allclose(value(a, a + 5.0), 0.0, atol=1e-6)  # a constant changes no distribution
    one, other = (jnp.where(jnp.arange(7) == k, 200.0, -200.0) for k in (0, 3))
    np.testing.assert_allclose(value(one, other), LN2, rtol=1e-6)


def test_gradients_are_those_of_the_definition_and_finite_at_large_logits():
    a, b = logits(2, shape=(5,)), logits(3, shape=(5,))
    got = gradients(jnp.float32(a), jnp.float32(b), jnp.ones(5, bool))
    eye = 1e-5 * np.eye(5)
    want_a = [(reference(a + e, b) - reference(a - e, b)) / 2e-5 for e in eye]
    want_b = [(reference(a, b + e) - reference(a, b - e)) / 2e-5 for e in eye]
    np.testing.assert_allclose(got[0], want_a, atol=1e-5)
    np.testing.assert_allclose(got[1], want_b, atol=1e-5)
    signs = jnp.float32(np.sign(logits(4)))
    for size in (200.0, 1e4):
        for x in gradients(size * signs, -size * signs, jnp.ones(7, bool)):
            assert np.isfinite(x).all()


def test_what_is_masked_out_has_no_say_and_no_gradient():
    a, b = logits(5), logits(6)
    where = np.random.default_rng(7).random((4, 7)) < 0.6
    where[0] = False
    where[1] = np.arange(7) == 2
    masked = jax.jit(lambda a, b: jensen_shannon(a, b, where=jnp.asarray(where)))
    got = masked(jnp.float32(a), jnp.float32(b))
    np.testing.assert_allclose(got, reference(a, b, where), rtol=2e-5, atol=1e-7)
    assert not np.any(got[:, :2])  # nothing left, and one entry alone
    for size in (1.0, 1e4, -1e4):
        other = np.where(where, a, size)
        np.testing.assert_array_equal(masked(jnp.float32(other), jnp.float32(b)), got)
        for x in gradients(jnp.float32(other), jnp.float32(b), jnp.asarray(where)):
            assert np.isfinite(x).all() and not np.any(np.where(where, 0.0, x))


def test_bfloat16_is_computed_in_float32():
    a, b = jnp.bfloat16(logits(8)), jnp.bfloat16(logits(9))
    got = value(a, b)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, reference(np.float32(a), np.float32(b)), rtol=2e-5, atol=1e-7)
