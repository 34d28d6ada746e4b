"""Sums over all pairs of rows, with gradients, of a matrix that is held as a whole or walked over in tiles."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.objectives.common.sweep import Sweep
from mmjax.objectives.common.tiles import Merge

Side = tuple[Any, Any]
"""Two trees of arrays whose first axis counts rows: those that have a gradient, and those that have none."""

PairTile = Callable[[Any, Side, Side], tuple[Any, Any]]
"""``(shared, rows, columns) -> (sums for rows, sums for columns)`` of a part of the matrix.

Rows of zeros and False are padding, which must not contribute. ``shared`` has no gradient.
"""


def sum_pairs(sweep: Sweep | None, tile: PairTile, shared: Any, rows: Side, columns: Side) -> tuple[Any, Any]:
    """The sums of ``tile`` over all pairs. They have gradients, in tiles too, where each tile is computed once more.

    Args:
        sweep: How tiles are walked over; None: the matrix is one tile.
        tile: Sums over the pairs of a tile; no sum may depend on pairs outside of it.
        shared: Passed to every tile, without a gradient.
        rows: One side.
        columns: The other side.
    """
    if sweep is None:
        return tile(shared, rows, columns)
    return _tiled(sweep, tile, rows[0], columns[0], (shared, rows[1], columns[1]))


def reduce_pairs(
    sweep: Sweep | None, tile: PairTile, shared: Any, rows: Side, columns: Side, *, empty: float, merge: Merge
) -> tuple[Any, Any]:
    """The same for reductions other than sums, such as maxima, which get no gradient.

    Args:
        sweep, tile, shared, rows, columns: As in ``sum_pairs``.
        empty: The reduction of no pairs.
        merge: Combines the reductions of two sets of pairs.
    """
    shared, rows, columns = jax.lax.stop_gradient((shared, rows, columns))
    if sweep is None:
        return tile(shared, rows, columns)
    shapes = jax.eval_shape(tile, shared, rows, columns)
    start = tuple(functools.partial(_filled, side, empty) for side in shapes)
    return sweep(tile, shared, rows, columns, empty=(start[0], start[1]), merge=merge)


def _filled(shapes: Any, value: float, rows: int) -> Any:
    """Arrays of ``rows`` rows, of the shapes of a side's reductions otherwise."""
    return jax.tree.map(lambda x: jnp.full((rows, *x.shape[1:]), value, x.dtype), shapes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tiled(sweep: Sweep, tile: PairTile, rows: Any, columns: Any, known: tuple[Any, Any, Any]) -> tuple[Any, Any]:
    shared, *sides = known
    arguments = (shared, (rows, sides[0]), (columns, sides[1]))
    shapes = jax.eval_shape(tile, *arguments)
    start = tuple(functools.partial(_filled, side, 0.0) for side in shapes)
    return sweep(tile, *arguments, empty=(start[0], start[1]), merge=_add)


def _forward(sweep: Sweep, tile: PairTile, rows: Any, columns: Any, known: Any) -> tuple[Any, Any]:
    return _tiled(sweep, tile, rows, columns, known), (rows, columns, known)


def _backward(sweep: Sweep, tile: PairTile, residuals: Any, cotangents: tuple[Any, Any]) -> tuple[Any, Any, None]:
    rows, columns, (shared, row_known, column_known) = residuals

    def tile_gradients(shared: Any, rows: Any, columns: Any) -> tuple[Any, Any]:
        (own, own_known, own_cotangents), (other, other_known, other_cotangents) = rows, columns
        _, pull = jax.vjp(lambda a, b: tile(shared, (a, own_known), (b, other_known)), own, other)
        return pull((own_cotangents, other_cotangents))

    gradients = sweep(
        tile_gradients,
        shared,
        (rows, row_known, cotangents[0]),
        (columns, column_known, cotangents[1]),
        empty=(functools.partial(_filled, rows, 0.0), functools.partial(_filled, columns, 0.0)),
        merge=_add,
    )
    return *gradients, None


_tiled.defvjp(_forward, _backward)


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)
