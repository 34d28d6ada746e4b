"""CLIP's ResNet (Radford et al., arXiv:2103.00020): from pixels to the 32nd part of each side."""

from __future__ import annotations

import functools
from typing import Any

import jax
from flax import nnx

from mmjax.models.config import VisionConfig
from mmjax.models.vision.conv import Conv, FixedBatchNorm


class ResNet(nnx.Module):
    """Three convolutions, then four stages of bottlenecks; sides are halved by averages, not by strides.

    Its batch norms have fixed statistics, so it is for pretrained weights: it can be used and fine-tuned, but learns
    badly from nothing.
    """

    def __init__(self, config: VisionConfig, *, channels: int, rngs: nnx.Rngs, dtype: Any):
        first = config.stem_widths[0]
        sizes = (channels, first // 2, first // 2, first)
        conv = functools.partial(Conv, size=3, bias=False, rngs=rngs, dtype=dtype)
        for i in range(3):
            setattr(self, f"conv_{i}", conv(*sizes[i : i + 2], stride=1 if i else 2))
            setattr(self, f"norm_{i}", FixedBatchNorm(sizes[i + 1], dtype=dtype))
        self.stage_layers = config.stem_layers
        inputs = first
        for stage, layers in enumerate(config.stem_layers):
            width = first * 2**stage
            for layer in range(layers):
                halve = stage > 0 and layer == 0
                setattr(self, f"stage_{stage}_{layer}", Bottleneck(inputs, width, halve=halve, rngs=rngs, dtype=dtype))
                inputs = 4 * width

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pixels f32 [N,H,W,C] -> [N, H/32, W/32, width]."""
        for i in range(3):
            x = jax.nn.relu(getattr(self, f"norm_{i}")(getattr(self, f"conv_{i}")(x)))
        x = average_pairs(x)
        for stage, layers in enumerate(self.stage_layers):
            for layer in range(layers):
                x = getattr(self, f"stage_{stage}_{layer}")(x)
        return x


class Bottleneck(nnx.Module):
    """Convolutions 1×1, 3×3 and 1×1 beside a shortcut (He et al., arXiv:1512.03385)."""

    def __init__(self, inputs: int, width: int, *, halve: bool, rngs: nnx.Rngs, dtype: Any):
        self.halve = halve
        conv = functools.partial(Conv, stride=1, bias=False, rngs=rngs, dtype=dtype)
        norm = functools.partial(FixedBatchNorm, dtype=dtype)
        self.conv_0, self.norm_0 = conv(inputs, width, size=1), norm(width)
        self.conv_1, self.norm_1 = conv(width, width, size=3), norm(width)
        self.conv_2, self.norm_2 = conv(width, 4 * width, size=1), norm(4 * width, scale=0.0)
        shortcut = halve or inputs != 4 * width
        self.shortcut = conv(inputs, 4 * width, size=1) if shortcut else None
        self.shortcut_norm = norm(4 * width) if shortcut else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,inputs] -> [N, H, W, 4·width], or half as high and wide."""
        y = jax.nn.relu(self.norm_0(self.conv_0(x)))
        y = jax.nn.relu(self.norm_1(self.conv_1(y)))
        if self.halve:
            x, y = average_pairs(x), average_pairs(y)
        y = self.norm_2(self.conv_2(y))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return jax.nn.relu(x + y)


def average_pairs(x: jax.Array) -> jax.Array:
    """Means of 2×2 pixels; an odd last row or column is dropped: [N,H,W,C] -> [N,H/2,W/2,C]."""
    n, high, wide, channels = x.shape[0], x.shape[1] // 2, x.shape[2] // 2, x.shape[3]
    return x[:, : 2 * high, : 2 * wide].reshape(n, high, 2, wide, 2, channels).mean(axis=(2, 4))
