"""Networks that others trained, layer by layer: equal to numpy in float64, and at full size to torch."""

import importlib.util

import jax
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.models.style_transfer.gram import GramConfig, gram_loss, transfer_style
from mmjax.models.style_transfer.layers import from_torch
from mmjax.models.style_transfer.predictor import predict_style
from mmjax.models.style_transfer.transformer import draw_in_style
from mmjax.models.style_transfer.vgg import vgg_features
from support import style_reference as reference

PARITY = 1e-4
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


def pictures(n, height, width, seed=0):
    """Of noise in different colors."""
    random = np.random.default_rng(seed)
    return (0.5 * random.random((n, height, width, 3)) + 0.5 * random.random((n, 1, 1, 3))).astype(np.float32)


def styles(n, z, seed=1):
    return np.random.default_rng(seed).normal(size=(n, z)).astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(16, 12), (13, 18)])
def test_pictures_in_styles_are_those_of_numpy(height, width):
    tensors, x, z = reference.random_transformer(), pictures(2, height, width), styles(2, 5)
    got = jax.jit(draw_in_style)(from_torch(tensors), x, z)
    want = np.transpose(reference.transform(tensors, x, z, reference.Numpy()), (0, 2, 3, 1))
    assert got.shape == x.shape
    np.testing.assert_allclose(got, want[:, :height, :width], atol=2e-5)
    assert np.std(want) > 0.05 and not np.allclose(*want)


@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_predicted_styles_are_those_of_numpy(batch_norm):
    tensors, x = reference.random_predictor(), pictures(3, 75, 75)
    got = jax.jit(predict_style, static_argnames="batch_norm")(from_torch(tensors), x, batch_norm=batch_norm)
    want = reference.predict(tensors, x, reference.Numpy(), training=batch_norm == "batch")
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert np.std(want, axis=0).max() > 1e-2


@needs_torch
def test_the_transformer_at_full_size_is_that_of_torch():
    tensors = reference.random_transformer(channels=(32, 64, 128), z=100, blocks=5)
    assert sum(x.size for x in tensors.values()) == 1_954_593
    x, z = pictures(2, 96, 96), styles(2, 100)
    want = reference.transform(tensors, x, z, reference.Torch()).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(jax.jit(draw_in_style)(from_torch(tensors), x, z), want, atol=PARITY)


@needs_torch
@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_the_predictor_is_that_of_torch(batch_norm):
    tensors, x = reference.random_predictor(width=16, z=100, gain=1.5), pictures(2, 96, 96)
    want = reference.predict(tensors, x, reference.Torch(), training=batch_norm == "batch").numpy()
    got = jax.jit(predict_style, static_argnames="batch_norm")(from_torch(tensors), x, batch_norm=batch_norm)
    np.testing.assert_allclose(got, want, atol=PARITY)


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_the_loss_is_that_of_the_paper(pooling):
    tensors, (x, content, style) = reference.random_vgg(), pictures(3, 32, 37)
    config = GramConfig(pooling=pooling, content_weight=0.3, style_weight=20.0)
    rows = (v[None] for v in (x, content, style))
    got = jax.jit(gram_loss, static_argnames="config")(from_torch(tensors), *rows, config=config)
    layers = {"content_layer": "conv4_2", "style_layers": [f"conv{n}_1" for n in range(1, 6)]}
    arguments = {"alpha": 0.3, "beta": 20.0, "pooling": pooling, **layers}
    want = reference.gatys_loss(tensors, x, content, style, reference.Numpy(), **arguments)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    alone = reference.gatys_loss(tensors, x, content, content, reference.Numpy(), **arguments | {"beta": 0.0})
    assert 0 < alone < want


@needs_torch
def test_vgg_at_full_width_is_that_of_torch():
    tensors, [x] = reference.random_vgg(width=64), pictures(1, 64, 48)
    want = reference.vgg(tensors, x, reference.Torch(), pooling="max")
    got = vgg_features(from_torch(tensors), x[None], ["conv1_1", "conv3_4", "conv5_4"], pooling="max")
    for layer, features in got.items():
        np.testing.assert_allclose(features[0].transpose(2, 0, 1), want[layer], atol=PARITY * want[layer].max().item())


SMALL = {"content_layer": "conv2_2", "style_layers": ("conv1_1", "conv2_1")}


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_pixels_are_optimized_towards_the_style_and_stay_in_range(optimizer):
    params, (content, style) = from_torch(reference.random_vgg()), pictures(2, 16, 12)
    config = GramConfig(**SMALL, optimizer=optimizer, steps=20, style_weight=1e4, learning_rate=0.05)
    run = jax.jit(transfer_style, static_argnames="config")
    made, (before, after) = run(params, content, style, jax.random.key(0), config=config)
    assert after < 0.3 * before and made.shape == content.shape
    assert made.min() >= 0 and made.max() <= 1


def test_a_layer_that_vgg_does_not_have_is_named():
    with pytest.raises(ConfigError, match=r"'conv4_9'.*VGG-19.*'conv4_"):
        GramConfig(content_layer="conv4_9")
    with pytest.raises(ConfigError, match=r"style_layers=\(\)"):
        GramConfig(style_layers=())
