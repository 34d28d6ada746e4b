"""TCL's local terms: one side's embedding against pieces of its own example and of others."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from mmjax.core.numerics import EXCLUDED
from mmjax.objectives.common.row_softmax import weighted_mean


def pool_patches(patches: jax.Array) -> jax.Array:
    """Means of windows of a square grid: [N, g², D] -> [N, (g // w)², D] with windows of w = ⌊√g⌋ patches a side.

    Patches beyond the last whole window are left out, and so are all windows if the patches are no square.
    """
    n, count, width = patches.shape
    grid = math.isqrt(count)
    if grid**2 != count:
        return patches
    window = math.isqrt(grid)
    left = grid // window
    squares = patches.reshape(n, grid, grid, width)[:, : left * window, : left * window]
    return jnp.mean(squares.reshape(n, left, window, left, window, width), axis=(2, 4)).reshape(n, -1, width)


def local_loss(
    rows: jax.Array,
    pieces: jax.Array,
    is_other: jax.Array,
    takes_part: jax.Array,
    *,
    scale: jax.Array,
    valid: jax.Array | None = None,
) -> jax.Array:
    """``mean_i mean_l [log(e^p_il + Σ_(j other, k) e^p_ijk) - p_il]``, with ``p_ijk = scale · row_i · piece_jk``.

    Args:
        rows: f32[N, D], unit rows.
        pieces: f32[N, P, D], of the same examples; they have no gradient.
        is_other: bool[N, N]: which rows' pieces are negatives of a row.
        takes_part: bool[N]: False for padding.
        scale: f32[].
        valid: bool[N, P], the pieces that there are; None: all.
    """
    n, count, _ = pieces.shape
    valid = jnp.ones((n, count), bool) if valid is None else valid
    pieces = jax.lax.stop_gradient(pieces)
    logits = scale * jnp.einsum("nd,mpd->nmp", rows, pieces, precision=jax.lax.Precision.HIGHEST)
    positive = jnp.einsum("nnp->np", logits)
    among = is_other[:, :, None] & valid[None, :, :]
    rest = jax.nn.logsumexp(jnp.where(among, logits, EXCLUDED), axis=(1, 2))
    each = jnp.logaddexp(positive, rest[:, None]) - positive
    mean = jnp.sum(jnp.where(valid, each, 0.0), axis=1) / jnp.maximum(jnp.sum(valid, axis=1, dtype=jnp.float32), 1.0)
    return weighted_mean(mean, takes_part & jnp.any(valid, axis=1))
