"""Tiles over several devices: columns travel from device to device in a ring, or all are gathered at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.objectives.common.tiles import Merge, Tile, num_rows, walk_tiles

Empty = Callable[[int], Any]
"""The result of n rows before the first tile."""


def ring(
    tile: Tile, shared: Any, rows: Any, columns: Any, *, empty: tuple[Empty, Empty], merge: Merge, chunk: int, axes: Any
) -> tuple[Any, Any]:
    """Reduces this device's rows against all columns, and its columns against all rows; call it in ``shard_map``.

    The columns move on by one device at every hop. Their results follow one hop later, so that no transfer waits for
    the hop's tiles, nor the tiles for a transfer. Memory is that of two devices' columns for any number of devices.
    """
    size = jax.lax.axis_size(axes)

    def shift(tree: Any) -> Any:
        pairs = [(device, (device + 1) % size) for device in range(size)]
        return _send_packed(lambda x: jax.lax.ppermute(x, axes, pairs), tree)

    def hop(_: jax.Array, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        columns, row_results, previous = carry
        next_columns, arrived = shift(columns), shift(previous)
        row_results, column_results = walk_tiles(
            tile, shared, rows, columns, (row_results, empty[1](num_rows(columns))), merge=merge, chunk=chunk
        )
        return next_columns, row_results, merge(arrived, column_results)

    start = (columns, empty[0](num_rows(rows)), empty[1](num_rows(columns)))
    _, row_results, column_results = jax.lax.fori_loop(0, size, hop, start)
    return row_results, shift(column_results)


def all_gather(
    tile: Tile, shared: Any, rows: Any, columns: Any, *, empty: tuple[Empty, Empty], merge: Merge, chunk: int, axes: Any
) -> tuple[Any, Any]:
    """The same as ``ring`` with all columns on every device: two large transfers instead of many small ones."""
    size, own = jax.lax.axis_size(axes), num_rows(columns)
    all_columns = jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), columns)
    start = (empty[0](num_rows(rows)), empty[1](size * own))
    row_results, column_results = walk_tiles(tile, shared, rows, all_columns, start, merge=merge, chunk=chunk)
    # Each device receives the results of all devices for its own columns.
    received = jax.tree.map(
        lambda x: jax.lax.all_to_all(x.reshape(size, own, *x.shape[1:]), axes, split_axis=0, concat_axis=0),
        column_results,
    )
    merged = jax.tree.map(lambda x: x[0], received)
    for device in range(1, size):
        merged = merge(merged, jax.tree.map(lambda x, device=device: x[device], received))
    return row_results, merged


def _send_packed(send: Callable[[jax.Array], jax.Array], tree: Any) -> Any:
    """``send`` of each array; vectors of one dtype are sent together, because each message has a fixed cost."""
    leaves, structure = jax.tree.flatten(tree)
    groups: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        groups.setdefault(leaf.dtype if leaf.ndim == 1 else i, []).append(i)
    for members in groups.values():
        if len(members) == 1:
            leaves[members[0]] = send(leaves[members[0]])
        else:
            sent = send(jnp.stack([leaves[i] for i in members]))
            for row, i in enumerate(members):
                leaves[i] = sent[row]
    return jax.tree.unflatten(structure, leaves)
