"""Rows through the towers in parts, each computed again for its gradient: a whole batch's loss in a part's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from mmjax.core.config import ConfigError

_Made = TypeVar("_Made")


def in_parts(f: Callable[[Any], _Made], rows: Any, *, parts: int, count: int) -> _Made:
    """``f(rows)`` for a function that treats every row alone, a ``parts``-th of the rows at a time.

    The backward pass keeps ``rows`` and what ``f`` made, and runs each part again, whose gradients it adds up::

        ∂L/∂θ = Σ_p (∂f(x_p)/∂θ)ᵀ ∂L/∂f(x_p)

    With a loss of all rows after it this is GradCache (Gao et al. 2021, arXiv:2101.06983; for CLIP, Pham et al.
    2021, arXiv:2111.10050): exact, for one more forward pass of ``f``.

    Every array of ``rows`` and of the result holds one or several batches of ``count`` rows, one after another. Part
    p takes rows p, p + parts, … of each: rows that lie together on a device are shared out there, and stay.
    """
    if parts == 1:
        return f(rows)
    if count % parts:
        raise ValueError(f"{count} rows do not divide into {parts} parts")
    size = count // parts

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(-1, size, parts, *x.shape[1:])
        return jnp.moveaxis(x, 2, 0).reshape(parts, -1, *x.shape[3:])

    def join(x: jax.Array) -> jax.Array:
        x = x.reshape(parts, -1, size, *x.shape[2:])
        return jnp.moveaxis(x, 0, 2).reshape(-1, *x.shape[3:])

    # In a loop nothing is there twice that could be taken for the same.
    made = jax.lax.map(jax.checkpoint(f, prevent_cse=False), jax.tree.map(split, rows))
    return jax.tree.map(join, made)


def check_parts(parts: int, *, batch_size: int, rows: int) -> None:
    """Raises where the ``rows`` of a batch that one device holds are not so many equal parts."""
    if rows % parts:
        near = [size * batch_size // rows for size in (rows // parts * parts, (rows // parts + 1) * parts) if size]
        raise ConfigError(
            f"micro_batches={parts}: does not divide the {rows} examples of batch_size={batch_size} that a device "
            f"has; the nearest batch sizes that it does: {', '.join(map(str, near))}"
        )
