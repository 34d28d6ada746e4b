"""The convolution of stems and ResNets, and the norm between convolutions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.core.numerics import broadcast_parameter
from mmjax.models.layers import uniform


class Conv(nnx.Module):
    """A convolution; by default 4×4 of stride 2 with one pixel of zero padding, which halves each side."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool,
        rngs: nnx.Rngs,
        dtype: Any,
        size: int = 4,
        stride: int = 2,
    ):
        self.dtype, self.stride, self.padding = dtype, stride, (size - 1) // 2
        self.kernel = nnx.Param(uniform((size * size * inputs) ** -0.5)(rngs.params(), (size, size, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [N,H,W,inputs] -> [N,H/stride,W/stride,outputs]."""
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            window_strides=(self.stride,) * 2,
            padding=((self.padding,) * 2,) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x if self.bias is None else x + broadcast_parameter(self.bias[...], x.shape, self.dtype)


class FixedBatchNorm(nnx.Module):
    """Batch norm (Ioffe & Szegedy, arXiv:1502.03167) with the statistics of pretrained weights, in f32.

    ``mean`` and ``var`` are parameters without a gradient, and weight decay leaves them alone: an image's embedding
    does not depend on the rest of its batch, on micro-batches, or on views.
    """

    def __init__(self, width: int, *, eps: float = 1e-5, scale: float = 1.0, dtype: Any):
        self.eps, self.dtype = eps, dtype
        self.scale = nnx.Param(jnp.full(width, scale))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.Param(jnp.zeros(width))
        self.var = nnx.Param(jnp.ones(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., width] -> the same shape."""
        mean, var = jax.lax.stop_gradient((self.mean[...], self.var[...]))
        x = (x.astype(jnp.float32) - mean) * jax.lax.rsqrt(var + self.eps)
        return (x * self.scale[...] + self.bias[...]).astype(self.dtype)
