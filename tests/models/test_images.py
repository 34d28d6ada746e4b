"""What the image tower takes: pixels, modalities, and a share of the patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models.vit import drop_patches
from support import clip_models

PAIR = {"modalities": ("image", "depth"), "modality_channels": (3, 1)}


def tower_of(**vision):
    config = clip_models.config(vision=vision, scan=False, remat="none")
    graph, shapes = clip_models.split(config)
    return config, clip_models.model(graph, clip_models.random_params(shapes))


def embed(model, images, seed=None):
    key = None if seed is None else jax.random.key(seed)
    return np.asarray(jax.jit(lambda images, key: model.visual.embed(images, key=key))(images, key))


def origins(kept, whole):
    """Which token of ``whole`` each of ``kept`` is, by row."""
    equal = (kept[:, :, None] == whole[:, None]).all(-1)
    assert (equal.sum(-1) == 1).all(), "a kept patch must be one of the originals, at its own position"
    return equal.argmax(-1)


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


@pytest.mark.parametrize("n, share", [(9, 0.5), (9, 0.75), (9, 0.99), (9, 0.01), (7, 0.3), (16, 0.5), (1, 0.9)])
def test_a_share_of_the_patches_is_kept(n, share):
    tokens = np.arange(5 * n * 2, dtype=np.float32).reshape(5, n, 2)
    kept = np.asarray(drop_patches(jnp.asarray(tokens), jax.random.key(0), share=share))
    assert kept.shape == (5, max(1, int(n * (1 - share))), 2)
    for row in origins(kept, tokens):
        assert len(set(row)) == len(row)


@pytest.mark.parametrize(
    "vision", [{}, {"registers": 2, "no_ln_pre": True}, {"class_token": False, "pool_type": "avg"}]
)
def test_only_patches_are_dropped_and_each_keeps_its_position(vision):
    config, model = tower_of(patch_dropout=0.5, **vision)
    images = clip_models.images(config, n=6)
    whole, kept = embed(model, images), embed(model, images, seed=1)
    extra = int(config.vision_cfg.class_token) + config.vision_cfg.registers
    assert whole.shape[1] == extra + 9 and kept.shape[1] == extra + 4
    np.testing.assert_array_equal(kept[:, :extra], whole[:, :extra])
    rows = origins(kept[:, extra:], whole[:, extra:])
    assert len({frozenset(row) for row in rows}) > 1, "each picture draws its own patches"


def test_patches_are_dropped_by_the_key_alone():
    config, model = tower_of(patch_dropout=0.5)
    images = clip_models.images(config, n=6)
    first = embed(model, images, seed=1)
    np.testing.assert_array_equal(embed(model, images, seed=1), first)
    assert not np.array_equal(embed(model, images, seed=2), first)
    everything = embed(model, images)
    _, without = tower_of(patch_dropout=0.0)
    np.testing.assert_array_equal(embed(without, images, seed=1), everything)


def test_every_patch_is_kept_as_often_as_any_other():
    tokens = np.tile(np.arange(9, dtype=np.float32)[:, None], (3000, 1, 1))
    kept = np.asarray(drop_patches(jnp.asarray(tokens), jax.random.key(4), share=0.5))[..., 0].astype(int)
    share = np.bincount(kept.ravel(), minlength=9) / 3000
    assert np.abs(share - 4 / 9).max() < 5 * (4 / 9 * 5 / 9 / 3000) ** 0.5


def test_modalities_in_one_sequence_drop_their_patches_together():
    config, model = tower_of(patch_dropout=0.5, fusion="tokens", **PAIR)
    images = clip_models.images(config, n=6)
    whole, kept = embed(model, images), embed(model, images, seed=1)
    assert kept.shape[1] == 1 + 9  # half of 2·9
    rows = origins(kept[:, 1:], whole[:, 1:])
    assert len({(row < 9).sum() for row in rows}) > 1


def test_an_embedding_with_dropped_patches_is_one_of_the_kept_patches():
    config, model = tower_of(patch_dropout=0.5)
    images = clip_models.images(config)
    key = jax.random.key(1)

    @jax.jit
    def both(images):
        tower = model.visual
        return model.encode_image(images, key=key), tower.project(tower.pooled(tower.embed(images, key=key)))

    direct, staged = both(images)
    np.testing.assert_allclose(direct, staged, atol=1e-6)
    plain = np.asarray(jax.jit(model.encode_image)(images))
    assert direct.shape == plain.shape and np.abs(direct - plain).max() > 1e-3
