"""VGG-19 (Simonyan & Zisserman 2015, arXiv:1409.1556) up to a layer, for the features that style transfer compares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.style_transfer.layers import Params, convolve, pool_max, pool_mean

Pooling = Literal["max", "mean"]

_CONVOLUTIONS = (2, 2, 4, 4, 4)  # of each block, with a pool after it
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def layer_names() -> dict[str, str]:
    """``conv1_1`` and so on, and for each its name in torchvision's weights, ``features.0``."""
    names, place = {}, 0
    for block, count in enumerate(_CONVOLUTIONS, 1):
        for number in range(1, count + 1):
            names[f"conv{block}_{number}"] = f"features.{place}"
            place += 2  # with its ReLU
        place += 1
    return names


def vgg_features(params: Params, x: jax.Array, layers: Iterable[str], *, pooling: Pooling) -> dict[str, jax.Array]:
    """Features after the ReLU of ``layers``, of pictures f32[B, H, W, 3] from 0 to 1: [B, H', W', C] each."""
    wanted, features = set(layers), {}
    x = (x - _MEAN) / _DEVIATION
    pool = pool_max if pooling == "max" else pool_mean
    names = layer_names()
    last = max(map(list(names).index, wanted))
    for i, (layer, name) in enumerate(names.items()):
        if i > last:
            break
        if layer.endswith("_1") and i:
            x = pool(x, 2, 2)
        x = jax.nn.relu(convolve(params, name, x, padding=(1, 1)))
        if layer in wanted:
            features[layer] = x
    return features


def gram_matrix(features: jax.Array) -> jax.Array:
    """``F Fᵀ`` over the positions of each picture: [B, H, W, C] -> f32[B, C, C]."""
    return jnp.einsum("bhwc,bhwd->bcd", features, features, precision=jax.lax.Precision.HIGHEST)
