import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.sphere import modality_gap, slerp, uniformity, unit


def unit_rows(seed, n=20, d=7):
    z = np.random.default_rng(seed).normal(size=(n, d))
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def reference(a, b, mix_ratio):
    angle = np.arccos(np.sum(a * b, axis=1, keepdims=True))
    return (np.sin(mix_ratio * angle) * a + np.sin((1 - mix_ratio) * angle) * b) / np.sin(angle)


def between(angle, d=5):
    """Two unit vectors at an exact angle, in float64."""
    a, side = np.eye(d)[:1], np.eye(d)[1:2]
    return a, np.cos(angle) * a + np.sin(angle) * side


@pytest.mark.parametrize("mix_ratio", [0.0, 0.2, 0.5, 1.0])
def test_values_are_the_equation(mix_ratio):
    a, b = unit_rows(0), unit_rows(1)
    got = np.asarray(slerp(jnp.float32(a), jnp.float32(b), jnp.float32(mix_ratio)), np.float64)
    np.testing.assert_allclose(got, reference(a, b, mix_ratio), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    swapped = slerp(jnp.float32(b), jnp.float32(a), jnp.float32(1 - mix_ratio))
    np.testing.assert_allclose(got, swapped, atol=1e-6)
    ends = {0.0: b, 1.0: a}
    if mix_ratio in ends:
        np.testing.assert_allclose(got, ends[mix_ratio], atol=1e-6)


def test_a_mix_ratio_for_each_row():
    a, b, mix_ratio = unit_rows(2), unit_rows(3), np.random.default_rng(4).random((20, 1))
    got = slerp(jnp.float32(a), jnp.float32(b), jnp.float32(mix_ratio))
    np.testing.assert_allclose(got, reference(a, b, mix_ratio), atol=1e-6)


@pytest.mark.parametrize("angle", [1e-3, 1e-2, 1.0, 3.0, np.pi - 1e-3])
def test_the_point_lies_at_its_ratio_of_the_angle(angle):
    a, b = between(angle)
    got = np.asarray(slerp(jnp.float32(a), jnp.float32(b), jnp.float32(0.25)), np.float64)
    np.testing.assert_allclose(2 * np.arcsin(np.linalg.norm(got - a) / 2), 0.75 * angle, rtol=2e-3)


@pytest.mark.parametrize("angle", [0.0, 1e-5, 1e-3, np.pi - 1e-3, np.pi])
def test_values_and_gradients_are_finite_at_both_ends(angle):
    a, b = (jnp.float32(x) for x in between(angle))
    for side in (0, 1, 2):
        grad = jax.grad(lambda *x: slerp(*x)[0, 2] + slerp(*x).sum(), argnums=side)(a, b, jnp.float32(0.3))
        assert np.isfinite(grad).all()
    out = slerp(a, b, jnp.float32(0.3))
    np.testing.assert_allclose(np.linalg.norm(out), 1, atol=1e-6)
    if angle == np.pi:
        np.testing.assert_allclose(out, a, atol=1e-6)


def test_unit_rows():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(unit(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    grad = jax.grad(lambda x: unit(x)[:, 0].sum())(x)
    assert np.isfinite(grad).all()
    assert unit(x.astype(jnp.bfloat16)).dtype == jnp.float32


def on_the_sphere(n, width=6, seed=0):
    return unit_rows(seed, n, width).astype(np.float32)


def reference_uniformity(x):
    x = x.astype(np.float64)
    near = np.exp(-2 * ((x[:, None] - x[None]) ** 2).sum(-1))
    np.fill_diagonal(near, 0)
    return np.log(near.sum() / (len(x) * (len(x) - 1)))


@pytest.mark.parametrize("n", [2, 9, 1100])
def test_uniformity_is_the_papers(n):
    x = on_the_sphere(n)
    np.testing.assert_allclose(uniformity(x), reference_uniformity(x), atol=2e-6)


def test_uniformity_is_0_for_one_point_and_lower_for_an_even_spread():
    x = on_the_sphere(300)
    assert uniformity(np.tile(x[:1], (9, 1))) == pytest.approx(0, abs=1e-6)
    assert uniformity(np.zeros((9, 6), np.float32)) == pytest.approx(0, abs=1e-6)
    assert uniformity(x[:1]) == 0
    assert uniformity(np.asarray(unit(x * np.float32([1, 1, 1, 0.1, 0.1, 0.1])))) > uniformity(x)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))
    assert uniformity((x @ turn).astype(np.float32)) == pytest.approx(float(uniformity(x)), abs=1e-5)
    # In many dimensions two random points are nearly orthogonal: ‖x - y‖² = 2.
    assert uniformity(on_the_sphere(300, width=2000)) == pytest.approx(-4, abs=0.05)


def test_the_modality_gap_is_between_means():
    x = on_the_sphere(40)
    assert modality_gap(x, x[::-1]) == pytest.approx(0, abs=1e-6)
    assert modality_gap(x[:1], -x[:1]) == pytest.approx(2)
    assert modality_gap(x, x[:10]) == pytest.approx(np.linalg.norm(x.mean(0) - x[:10].mean(0)), abs=1e-6)
