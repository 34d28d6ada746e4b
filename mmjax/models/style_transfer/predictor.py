"""The style of a picture: Inception v3 up to its layer 6e, and a linear map (Ghiasi et al. 2017, arXiv:1705.06830)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.style_transfer.layers import Params, convolve, multiply, pool_max, pool_mean

LEAST_SIDE = 43
"""Of a picture: smaller ones vanish between the strides."""

BatchNorm = Literal["running", "batch"]

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
_DEVIATION_FIRST = np.array([0.229, 0.224, 0.255], np.float32)
"""What Jackson et al. divide by before they multiply by ``_DEVIATION``; their weights were trained with this blue."""

# Each branch's convolutions in order, with their paddings in height and width.
_A = (
    ((("branch1x1", 0, 0),), 1),
    ((("branch5x5_1", 0, 0), ("branch5x5_2", 2, 2)), 1),
    ((("branch3x3dbl_1", 0, 0), ("branch3x3dbl_2", 1, 1), ("branch3x3dbl_3", 1, 1)), 1),
)
_B = (
    ((("branch3x3", 0, 0),), 2),
    ((("branch3x3dbl_1", 0, 0), ("branch3x3dbl_2", 1, 1), ("branch3x3dbl_3", 0, 0)), 2),
)
_C = (
    ((("branch1x1", 0, 0),), 1),
    ((("branch7x7_1", 0, 0), ("branch7x7_2", 0, 3), ("branch7x7_3", 3, 0)), 1),
    (
        (
            ("branch7x7dbl_1", 0, 0),
            ("branch7x7dbl_2", 3, 0),
            ("branch7x7dbl_3", 0, 3),
            ("branch7x7dbl_4", 3, 0),
            ("branch7x7dbl_5", 0, 3),
        ),
        1,
    ),
)
_BLOCKS = {
    **dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), _A),
    "Mixed_6a": _B,
    **dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), _C),
}


def predict_style(params: Params, x: jax.Array, *, batch_norm: BatchNorm = "running") -> jax.Array:
    """P(c) of pictures [B, H, W, 3] from 0 to 1: f32[B, D].

    Args:
        params: by the names of Jackson et al.'s weights.
        x: pictures of at least ``LEAST_SIDE`` pixels a side.
        batch_norm: ``running`` statistics of the weights, or those of the pictures at hand, as their code uses them,
            since it never leaves training mode.
    """

    def layer(y: jax.Array, name: str, *, stride: int = 1, padding: tuple[int, int] = (0, 0)) -> jax.Array:
        y = convolve(params, f"{name}.conv", y, stride=stride, padding=padding)
        return jax.nn.relu(_normalize(params, f"{name}.bn", y, batch_norm))

    x = (x - _MEAN) / _DEVIATION_FIRST
    x = (x * (_DEVIATION / 0.5) + (_MEAN - 0.5) / 0.5).astype(x.dtype)
    x = layer(x, "Conv2d_1a_3x3", stride=2)
    x = layer(layer(x, "Conv2d_2a_3x3"), "Conv2d_2b_3x3", padding=(1, 1))
    x = layer(layer(pool_max(x, 3, 2), "Conv2d_3b_1x1"), "Conv2d_4a_3x3")
    x = pool_max(x, 3, 2)
    for block, branches in _BLOCKS.items():
        outputs = []
        for convolutions, last_stride in branches:
            y = x
            for i, (name, *padding) in enumerate(convolutions):
                stride = last_stride if i == len(convolutions) - 1 else 1
                y = layer(y, f"{block}.{name}", stride=stride, padding=(padding[0], padding[1]))
            outputs.append(y)
        if branches is _B:
            outputs.append(pool_max(x, 3, 2))
        else:
            outputs.append(layer(pool_mean(x, 3, 1, padding=1), f"{block}.branch_pool"))
        x = jnp.concatenate(outputs, axis=-1)
    return multiply(params, "fc", jnp.mean(x.astype(jnp.float32), axis=(1, 2)))


def _normalize(params: Params, name: str, y: jax.Array, batch_norm: BatchNorm) -> jax.Array:
    """Batch norm with ε = 1e-3, in float32."""
    rows = y.astype(jnp.float32)
    if batch_norm == "batch":
        mean, variance = jnp.mean(rows, axis=(0, 1, 2)), jnp.var(rows, axis=(0, 1, 2))
    else:
        mean, variance = (jnp.asarray(params[f"{name}.running_{kind}"]) for kind in ("mean", "var"))
    scale = params[f"{name}.weight"] * jax.lax.rsqrt(variance + 1e-3)
    return ((rows - mean) * scale + params[f"{name}.bias"]).astype(y.dtype)
