"""A network that draws any picture in any style (Ghiasi et al. 2017, arXiv:1705.06830)."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp

from mmjax.models.style_transfer.layers import Params, convolve, multiply, normalize_instances, reflect


def draw_in_style(params: Params, x: jax.Array, z: jax.Array) -> jax.Array:
    """Pictures [B, H, W, 3] from 0 to 1 in the styles z f32[B, D]: the same, in the dtype of ``x``.

    After each convolution of the second half, features are normalized to ``γ(z) (h - μ) / σ + β(z)``, with μ and σ over
    the picture, γ and β linear. Convolutions as in Jackson et al.'s weights: 9×9, two 3×3 of stride 2, residual blocks,
    two 3×3 after doubling the size, 9×9; each mirrors its border. ``layers.I`` of the names are these in order.

    The network makes pictures whose sides divide by 4; of others it cuts what is beyond the right and lower border.
    """
    height, width = x.shape[1:3]

    def normalize(y: jax.Array, name: str, number: str = "") -> jax.Array:
        gamma, beta = (multiply(params, f"{name}.fc_{kind}{number}", z)[:, None, None] for kind in ("gamma", "beta"))
        return (gamma * normalize_instances(y) + beta).astype(y.dtype)

    def mirror_and_convolve(y: jax.Array, name: str, stride: int = 1) -> jax.Array:
        return convolve(params, name, reflect(y, params[f"{name}.weight"].shape[0] // 2), stride=stride)

    doubled = 0
    for i in itertools.count():
        name = f"layers.{i}"
        if f"{name}.conv1.weight" in params:
            y = jax.nn.relu(normalize(mirror_and_convolve(x, f"{name}.conv1"), name, "1"))
            x = x + normalize(mirror_and_convolve(y, f"{name}.conv2"), name, "2")
        elif f"{name}.fc_beta.weight" not in params:
            y = mirror_and_convolve(x, f"{name}.conv", stride=1 if i == 0 else 2)
            x = jax.nn.relu(normalize_instances(y)).astype(x.dtype)
        elif doubled < 2:
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = jax.nn.relu(normalize(mirror_and_convolve(x, f"{name}.conv"), name))
            doubled += 1
        else:
            last = normalize(mirror_and_convolve(x, f"{name}.conv"), name)
            return jax.nn.sigmoid(last)[:, :height, :width]
    raise AssertionError
