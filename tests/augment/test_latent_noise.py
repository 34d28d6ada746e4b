import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.augment.latent_noise import perturb
from support import features


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.5, 0.9])
def test_the_angle_is_bounded_and_the_noise_as_long_as_asked(strength):
    h = jnp.asarray(np.random.default_rng(0).normal(size=(500, 12)) * 7, jnp.float32)
    out = np.asarray(perturb(h, jax.random.key(0), jnp.float32(strength)), np.float64)
    h = np.asarray(h, np.float64)
    length = np.linalg.norm(h, axis=1)
    np.testing.assert_allclose(np.linalg.norm(out - h, axis=1), strength * length, rtol=1e-4, atol=1e-5)
    cosine = (out * h).sum(1) / length / np.linalg.norm(out, axis=1)
    assert (cosine >= np.sqrt(1 - strength**2) - 1e-6).all()
    if strength:
        assert cosine.min() < 1 - strength**2 / 8 and cosine.std() > 0
    else:
        np.testing.assert_array_equal(out, h)


def test_the_direction_of_the_noise_is_uniform():
    h = jnp.ones((20_000, 3))
    noise = np.asarray(perturb(h, jax.random.key(1), jnp.float32(1.0)) - h) / np.sqrt(3)
    np.testing.assert_allclose(noise.mean(0), 0, atol=4 / np.sqrt(3 * 20_000))
    np.testing.assert_allclose(noise.T @ noise / len(noise), np.eye(3) / 3, atol=0.02)


@pytest.mark.parametrize("sides", ["image", "text", "both"])
@pytest.mark.parametrize("tap", ["pooled", "embedding"])
def test_only_the_chosen_sides_move(sides, tap):
    augmentations = features.made("latent_noise", sides=sides, tap=tap, strength=0.5)
    _, metrics = features.added(augmentations, {}, features.head_params(), features.features())
    moved = {side for side in ("image", "text") if f"augment/latent_noise/task_{side}_cosine" in metrics}
    assert moved == ({"image", "text"} if sides == "both" else {sides})
    assert all(metrics[f"augment/latent_noise/task_{side}_cosine"] < 0.99 for side in moved)


def test_without_noise_the_term_is_the_clean_loss():
    augmentations = features.made("latent_noise", strength=0.0, weight=0.7)
    value, metrics = features.added(augmentations, {}, features.head_params(), features.features())
    np.testing.assert_allclose(metrics["augment/latent_noise/task_gap"], 0, atol=1e-6)
    np.testing.assert_allclose(value, 0.7 * metrics["augment/latent_noise/task"], rtol=1e-6)
