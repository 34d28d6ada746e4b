"""What the image tower takes: pixels and modalities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support import clip_models

PAIR = {"modalities": ("image", "depth"), "modality_channels": (3, 1)}


def tower_of(**vision):
    config = clip_models.config(vision=vision, scan=False, remat="none")
    graph, shapes = clip_models.split(config)
    return config, clip_models.model(graph, clip_models.random_params(shapes))


def embed(model, images):
    return np.asarray(jax.jit(model.visual.embed)(images))


def test_bytes_and_floats_of_the_same_scale_are_the_same_picture():
    config, model = tower_of()
    images = clip_models.images(config)
    floats = {m: x.astype(np.float32) for m, x in images.items()}
    np.testing.assert_allclose(embed(model, floats), embed(model, images), rtol=1e-6)
    darker = {m: x // 2 for m, x in images.items()}
    assert np.abs(embed(model, darker) - embed(model, images)).max() > 1e-3


def test_a_picture_of_the_mean_colour_is_zero():
    mean = (51 / 255, 102 / 255, 204 / 255)
    _, model = tower_of(image_mean=mean, image_std=(0.5, 0.25, 0.125), no_ln_pre=True)
    picture = np.tile(np.array([51, 102, 204], np.uint8), (1, 12, 12, 1))
    positions = np.asarray(model.visual.pos_embed[...])
    patches = embed(model, {"image": picture})[0, 1:]
    np.testing.assert_allclose(patches, positions[1:], atol=1e-5)
    # One standard deviation more in one channel adds that channel's kernel, once for each pixel of the patch.
    picture[..., 1] += np.uint8(51)
    kernel = np.asarray(model.visual.patch_embed.kernel[...])[:, :, 1].sum((0, 1))
    got = embed(model, {"image": picture})[0, 1:]
    np.testing.assert_allclose(got - positions[1:], np.tile(kernel * (0.2 / 0.25), (9, 1)), atol=1e-4)


@pytest.mark.parametrize(
    ("vision", "images", "message"),
    [
        ({}, {"image": (2, 16, 16, 3)}, r"images\['image'\].*\(2, 16, 16, 3\).*\[N, 12, 12, 3\]"),
        ({}, {"image": (2, 12, 12, 1)}, r"images\['image'\].*\(2, 12, 12, 1\)"),
        ({}, {"thermal": (2, 12, 12, 3)}, r"'thermal'.*modalities"),
        (PAIR, {"image": (2, 12, 12, 3), "thermal": (2, 12, 12, 3)}, r"'thermal'.*modalities"),
        (PAIR, {}, r"images=\[\].*modalities"),
        (PAIR | {"fusion": "channels"}, {"image": (2, 12, 12, 3)}, r"takes all of.*'depth'"),
    ],
    ids=["size", "channels", "unknown", "one unknown", "none", "one missing"],
)  # fmt: skip
def test_pictures_that_the_tower_cannot_take_are_refused(vision, images, message):
    _, model = tower_of(**vision)
    with pytest.raises(ValueError, match=message):
        model.encode_image({m: jnp.zeros(shape, jnp.uint8) for m, shape in images.items()})
