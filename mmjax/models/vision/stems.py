"""Stems: from pixels to a grid of tokens."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from mmjax.models.config import VisionConfig
from mmjax.models.layers import Dense, LayerNorm, activate, uniform
from mmjax.models.vision.conv import Conv, FixedBatchNorm
from mmjax.models.vision.resnet import ResNet


class PatchMerge(Dense):
    """One linear map of each size×size patch: a convolution whose stride is its kernel's size."""

    def __init__(self, size: int, inputs: int, outputs: int, *, bias: bool, rngs: nnx.Rngs, dtype: Any):
        init = uniform((size * size * inputs) ** -0.5)
        super().__init__((size, size, inputs), (outputs,), init=init, bias=bias, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [N,H,W,inputs] -> [N,H/size,W/size,outputs]; pixels beyond the last whole patch are dropped."""
        size, channels = self.inputs[1:]
        n, high, wide = x.shape[0], x.shape[1] // size, x.shape[2] // size
        x = x[:, : high * size, : wide * size].reshape(n, high, size, wide, size, channels)
        return super().__call__(x.transpose(0, 1, 3, 2, 4, 5))


class DeepStem(nnx.Module):
    """Several convolutions or merges, with norms over channels, and the activation between them.

    Each has a layer norm; of batch norms, the last has none, and has a bias instead.

    Overlapping convolutions at the input help small vision transformers (Xiao et al., arXiv:2106.14881).
    """

    def __init__(self, config: VisionConfig, *, channels: int, rngs: nnx.Rngs, dtype: Any):
        self.steps, self.activation = len(config.stem_widths), config.activation
        first = config.patch_size // 2 ** (self.steps - 1)
        sizes = (channels, *config.stem_widths)
        for i in range(self.steps):
            pair = sizes[i : i + 2]
            batch, last = config.stem_norm == "batch", i == self.steps - 1
            bias = last if batch else config.patch_bias
            options: dict[str, Any] = {"bias": bias, "rngs": rngs, "dtype": dtype}
            convolution = (
                Conv(*pair, **options) if config.stem == "conv" else PatchMerge(2 if i else first, *pair, **options)
            )
            setattr(self, f"conv_{i}", convolution)
            if not batch:
                setattr(self, f"norm_{i}", LayerNorm(pair[1], eps=config.ln_eps, dtype=dtype))
            elif not last:
                setattr(self, f"norm_{i}", FixedBatchNorm(pair[1], dtype=dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pixels f32 [N,H,W,C] -> [N, grid, grid, width]."""
        for i in range(self.steps):
            x = activate(x, self.activation) if i else x
            x = getattr(self, f"conv_{i}")(x)
            norm = getattr(self, f"norm_{i}", None)
            x = x if norm is None else norm(x)
        return x


def make_stem(config: VisionConfig, *, channels: int, rngs: nnx.Rngs, dtype: Any) -> Dense | DeepStem | ResNet:
    """The stem that ``config`` names: [N,H,W,channels] -> [N, grid, grid, width], or [N,T,channels] -> [N,T,width]."""
    if config.stem == "frames":
        channels = config.modality_channels[0]
        return Dense((channels,), (config.width,), init=uniform(channels**-0.5), rngs=rngs, dtype=dtype)
    if config.stem == "patch":
        return PatchMerge(config.patch_size, channels, config.width, bias=config.patch_bias, rngs=rngs, dtype=dtype)
    if config.stem == "resnet":
        return ResNet(config, channels=channels, rngs=rngs, dtype=dtype)
    return DeepStem(config, channels=channels, rngs=rngs, dtype=dtype)
