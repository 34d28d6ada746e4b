"""Convolutions, norms and pools as torch computes them, on pictures [B, H, W, C]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = Mapping[str, Any]
"""By name: kernels [height, width, in, out], matrices [in, out], and vectors."""


def from_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors of torch's modules in float32, kernels and matrices turned to have their outputs last."""
    order = {4: (2, 3, 1, 0), 2: (1, 0)}
    return {name: np.transpose(x, order.get(x.ndim)).astype(np.float32) for name, x in tensors.items()}


def convolve(
    params: Params, name: str, x: jax.Array, *, stride: int = 1, padding: tuple[int, int] = (0, 0)
) -> jax.Array:
    """``name.weight`` and, if there is one, ``name.bias``; products in the dtype of ``x``."""
    y: jax.Array = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(params[f"{name}.weight"], x.dtype),
        (stride, stride),
        [(p, p) for p in padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
    )
    bias = params.get(f"{name}.bias")
    return y if bias is None else y + jnp.asarray(bias, y.dtype)


def reflect(x: jax.Array, size: int) -> jax.Array:
    """Mirrors ``size`` pixels over each border."""
    return jnp.pad(x, ((0, 0), (size, size), (size, size), (0, 0)), mode="reflect")


def multiply(params: Params, name: str, x: jax.Array) -> jax.Array:
    """The linear map ``name`` of vectors f32[B, D]."""
    weight = jnp.asarray(params[f"{name}.weight"])
    return jnp.matmul(x, weight, precision=jax.lax.Precision.HIGHEST) + params[f"{name}.bias"]


def normalize_instances(x: jax.Array) -> jax.Array:
    """f32[B, H, W, C]: each channel of each picture at mean 0 and variance 1, with ε = 1e-5."""
    rows = x.astype(jnp.float32)
    rows = rows - jnp.mean(rows, axis=(1, 2), keepdims=True)
    variance = jnp.mean(jnp.square(rows), axis=(1, 2), keepdims=True)
    return rows * jax.lax.rsqrt(variance + 1e-5)


def pool_max(x: jax.Array, size: int, stride: int) -> jax.Array:
    """The largest number of each window; no padding."""
    low = np.array(-np.inf, x.dtype)  # not of jax, or there would be no gradient
    return jax.lax.reduce_window(x, low, jax.lax.max, (1, size, size, 1), (1, stride, stride, 1), "VALID")


def pool_mean(x: jax.Array, size: int, stride: int, *, padding: int = 0) -> jax.Array:
    """The mean of each window, which counts padding as zeros."""
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    zero = np.zeros((), x.dtype)
    return jax.lax.reduce_window(x, zero, jax.lax.add, (1, size, size, 1), (1, stride, stride, 1), pads) / size**2
