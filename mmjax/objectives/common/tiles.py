"""A matrix over pairs of rows, walked tile by tile: nothing of its size is ever made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tile = Callable[[Any, Any, Any], tuple[Any, Any]]
"""``(shared, rows, columns) -> (of rows, of columns)``: what one tile adds to each of its rows and columns.

All are trees; but for ``shared``, arrays have a row (a column) along their first axis. Rows of zeros and False are
padding, which a tile must leave out of what it finds of the other side.
"""

Merge = Callable[[Any, Any], Any]
"""Of what two sets of tiles found of the same rows; associative."""


def walk(
    tile: Tile, shared: Any, rows: Any, columns: Any, found: tuple[Any, Any], *, merge: Merge, chunk: int
) -> tuple[Any, Any]:
    """``found`` of rows and of columns, merged with what every tile of at most ``chunk`` by ``chunk`` adds.

    The accumulators are as long as the rows (columns), so memory grows with their number and not with its square.
    """
    n, m = count(rows), count(columns)
    (steps, height), (strides, width) = _split(n, chunk), _split(m, chunk)
    if steps == strides == 1:
        of_rows, of_columns = tile(shared, rows, columns)
        return merge(found[0], of_rows), merge(found[1], of_columns)
    rows, of_rows = (padded(tree, steps * height) for tree in (rows, found[0]))
    columns, of_columns = (padded(tree, strides * width) for tree in (columns, found[1]))

    def step(i: jax.Array, found: tuple[Any, Any]) -> tuple[Any, Any]:
        top, left = (i // strides) * height, (i % strides) * width
        new = tile(shared, _cut(rows, top, height), _cut(columns, left, width))
        return (
            _put(found[0], merge(_cut(found[0], top, height), new[0]), top),
            _put(found[1], merge(_cut(found[1], left, width), new[1]), left),
        )

    of_rows, of_columns = jax.lax.fori_loop(0, steps * strides, step, (of_rows, of_columns))
    return shortened(of_rows, n), shortened(of_columns, m)


def count(tree: Any) -> int:
    """How many rows the arrays have."""
    return jax.tree.leaves(tree)[0].shape[0]


def padded(tree: Any, rows: int) -> Any:
    """The arrays with rows of zeros (False) after their own, ``rows`` together."""
    more = rows - count(tree)
    if more == 0:
        return tree
    return jax.tree.map(lambda x: jnp.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)), tree)


def shortened(tree: Any, rows: int) -> Any:
    """The first rows of the arrays."""
    return tree if count(tree) == rows else jax.tree.map(lambda x: x[:rows], tree)


def _split(rows: int, chunk: int) -> tuple[int, int]:
    """How many tiles, and how long: as even as can be, so that little is padded."""
    steps = -(-rows // chunk)
    return steps, -(-rows // steps)


def _cut(tree: Any, start: jax.Array, rows: int) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows), tree)


def _put(tree: Any, part: Any, start: jax.Array) -> Any:
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, 0), tree, part)
