"""Gradient caching: functions of rows run on one micro-batch at a time, and once more in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from mmjax.core.config import ConfigError

_Result = TypeVar("_Result")


def map_micro_batches(f: Callable[[Any], _Result], rows: Any, *, micro_batches: int, count: int) -> _Result:
    """``f(rows)``, computed one micro-batch at a time, for a function that treats every row alone.

    The backward pass keeps ``rows`` and the result, runs ``f`` once more on each micro-batch, and sums gradients::

        ∂L/∂θ = Σ_p (∂f(x_p)/∂θ)ᵀ ∂L/∂f(x_p)

    With a loss over all rows after it this is GradCache (Gao et al. 2021, arXiv:2101.06983; for CLIP, Pham et al.
    2021, arXiv:2111.10050): exact, at the cost of one more forward pass of ``f``.

    Micro-batch p takes rows p, p + micro_batches, … of each batch, so that every device splits its own rows and no
    row moves between devices.

    Args:
        f: the function.
        rows: a tree of arrays, each of one or several batches of ``count`` rows, one after another.
        micro_batches: how many; 1 calls ``f`` directly.
        count: the rows of one batch, divisible by ``micro_batches``.

    Returns:
        A tree of arrays with their rows in the order of ``rows``.
    """
    if micro_batches == 1:
        return f(rows)
    if count % micro_batches:
        raise ValueError(f"{count} rows do not divide into {micro_batches} micro-batches")
    size = count // micro_batches

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(-1, size, micro_batches, *x.shape[1:])
        return jnp.moveaxis(x, 2, 0).reshape(micro_batches, -1, *x.shape[3:])

    def join(x: jax.Array) -> jax.Array:
        x = x.reshape(micro_batches, -1, size, *x.shape[2:])
        return jnp.moveaxis(x, 0, 2).reshape(-1, *x.shape[3:])

    # Within a loop the compiler cannot merge the two forward passes, so its barrier against that is not needed.
    result = jax.lax.map(jax.checkpoint(f, prevent_cse=False), jax.tree.map(split, rows))
    return jax.tree.map(join, result)


def check_micro_batches(micro_batches: int, *, batch_size: int, rows: int) -> None:
    """Raises ConfigError unless the ``rows`` of a batch on one device divide into equal micro-batches."""
    if rows % micro_batches:
        below = rows // micro_batches * micro_batches
        nearest = [size * batch_size // rows for size in (below, below + micro_batches) if size]
        raise ConfigError(
            f"micro_batches={micro_batches}: does not divide the {rows} examples of batch_size={batch_size} on each "
            f"device; the nearest batch sizes that it divides: {', '.join(map(str, nearest))}"
        )
