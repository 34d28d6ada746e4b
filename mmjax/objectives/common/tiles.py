"""A matrix over pairs of rows, reduced tile by tile on one device without being held in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tile = Callable[[Any, Any, Any], tuple[Any, Any]]
"""``(shared, rows, columns) -> (row results, column results)``: what one tile contributes to its rows and columns.

All are pytrees. Except in ``shared``, the first axis of every array counts rows (columns). Rows of zeros and False are
padding, which must not contribute to the results of the other side.
"""

Merge = Callable[[Any, Any], Any]
"""Combines the results of two sets of tiles for the same rows; associative."""


def walk_tiles(
    tile: Tile, shared: Any, rows: Any, columns: Any, start: tuple[Any, Any], *, merge: Merge, chunk: int
) -> tuple[Any, Any]:
    """Reduces all tiles of at most ``chunk`` by ``chunk`` pairs.

    Memory grows with the number of rows and columns, not with their product.

    Args:
        tile: Computes one tile.
        shared: Passed to every tile.
        rows: A pytree of arrays [N, …].
        columns: A pytree of arrays [M, …].
        start: Results for rows and for columns before the first tile.
        merge: Combines results.
        chunk: The largest side of a tile.

    Returns:
        The results for rows and for columns.
    """
    n, m = num_rows(rows), num_rows(columns)
    (row_steps, height), (column_steps, width) = _split(n, chunk), _split(m, chunk)
    row_results, column_results = start
    if row_steps == column_steps == 1:
        new_rows, new_columns = tile(shared, rows, columns)
        return merge(row_results, new_rows), merge(column_results, new_columns)
    rows, row_results = (pad_rows(tree, row_steps * height) for tree in (rows, row_results))
    columns, column_results = (pad_rows(tree, column_steps * width) for tree in (columns, column_results))

    def step(i: jax.Array, results: tuple[Any, Any]) -> tuple[Any, Any]:
        top, left = (i // column_steps) * height, (i % column_steps) * width
        new = tile(shared, _slice(rows, top, height), _slice(columns, left, width))
        return (
            _update(results[0], merge(_slice(results[0], top, height), new[0]), top),
            _update(results[1], merge(_slice(results[1], left, width), new[1]), left),
        )

    results = jax.lax.fori_loop(0, row_steps * column_steps, step, (row_results, column_results))
    return first_rows(results[0], n), first_rows(results[1], m)


def num_rows(tree: Any) -> int:
    """The number of rows of the arrays."""
    return jax.tree.leaves(tree)[0].shape[0]


def pad_rows(tree: Any, rows: int) -> Any:
    """The arrays with rows of zeros (False) appended, up to ``rows`` in total."""
    return jax.tree.map(
        lambda x: x if x.shape[0] == rows else jnp.pad(x, [(0, rows - x.shape[0])] + [(0, 0)] * (x.ndim - 1)), tree
    )


def first_rows(tree: Any, rows: int) -> Any:
    """The first ``rows`` rows of the arrays."""
    return jax.tree.map(lambda x: x if x.shape[0] == rows else x[:rows], tree)


def _split(rows: int, chunk: int) -> tuple[int, int]:
    """The number of tiles and their length, as even as possible, so that there is little padding."""
    steps = -(-rows // chunk)
    return steps, -(-rows // steps)


def _slice(tree: Any, start: jax.Array, rows: int) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows), tree)


def _update(tree: Any, rows: Any, start: jax.Array) -> Any:
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, 0), tree, rows)
