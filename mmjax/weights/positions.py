"""Position embeddings of an image tower for another image size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def resize_positions(table: np.ndarray, grid: int, *, class_token: bool) -> np.ndarray:
    """f32[n² (+1), D] -> f32[grid² (+1), D], by bicubic interpolation with antialiasing, as open_clip does it.

    big_vision interpolates linearly, which gives slightly other numbers. The class token's own is kept.
    """
    first, patches = table[: int(class_token)], table[int(class_token) :]
    side = round(len(patches) ** 0.5)
    square = jnp.asarray(patches, jnp.float32).reshape(side, side, -1)
    resized = jax.image.resize(square, (grid, grid, square.shape[-1]), "cubic", antialias=True)
    return np.concatenate([first, np.asarray(resized).reshape(grid * grid, -1)])
