"""Rows over several devices: the columns come to them one device's share after the other, or all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.objectives.common.tiles import Merge, Tile, count, walk

Empty = Callable[[int], Any]
"""What is known of so many rows before any tile."""


def ring(
    tile: Tile, shared: Any, rows: Any, columns: Any, *, empty: tuple[Empty, Empty], merge: Merge, chunk: int, axes: Any
) -> tuple[Any, Any]:
    """What all tiles find of this device's rows and columns; within ``shard_map`` over ``axes``.

    At every hop the columns move on by one device. What was found of them follows one hop later, so that neither
    transfer waits for the hop's tiles, nor they for it. Memory is that of two devices' columns, however many there are.
    """
    size = jax.lax.axis_size(axes)

    def onward(tree: Any) -> Any:
        to = [(device, (device + 1) % size) for device in range(size)]
        return _packed(lambda x: jax.lax.ppermute(x, axes, to), tree)

    def hop(_: jax.Array, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        columns, of_rows, left_behind = carry
        following, arrived = onward(columns), onward(left_behind)
        of_rows, of_columns = walk(
            tile, shared, rows, columns, (of_rows, empty[1](count(columns))), merge=merge, chunk=chunk
        )
        return following, of_rows, merge(arrived, of_columns)

    start = (columns, empty[0](count(rows)), empty[1](count(columns)))
    _, of_rows, of_columns = jax.lax.fori_loop(0, size, hop, start)
    return of_rows, onward(of_columns)


def _packed(send: Callable[[jax.Array], jax.Array], tree: Any) -> Any:
    """``send`` of each array; vectors of one kind go together, as a message costs more than the few bytes of one."""
    leaves, structure = jax.tree.flatten(tree)
    kinds: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        kinds.setdefault(leaf.dtype if leaf.ndim == 1 else i, []).append(i)
    for members in kinds.values():
        if len(members) == 1:
            leaves[members[0]] = send(leaves[members[0]])
        else:
            sent = send(jnp.stack([leaves[i] for i in members]))
            for place, i in enumerate(members):
                leaves[i] = sent[place]
    return jax.tree.unflatten(structure, leaves)


def gathered(
    tile: Tile, shared: Any, rows: Any, columns: Any, *, empty: tuple[Empty, Empty], merge: Merge, chunk: int, axes: Any
) -> tuple[Any, Any]:
    """The same with all columns on every device at once: two large transfers in place of many."""
    size, own = jax.lax.axis_size(axes), count(columns)
    everything = jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), columns)
    found = (empty[0](count(rows)), empty[1](size * own))
    of_rows, of_columns = walk(tile, shared, rows, everything, found, merge=merge, chunk=chunk)
    # Each device gets what every other found of its own columns.
    parts = jax.tree.map(
        lambda x: jax.lax.all_to_all(x.reshape(size, own, *x.shape[1:]), axes, split_axis=0, concat_axis=0), of_columns
    )
    mine = jax.tree.map(lambda x: x[0], parts)
    for device in range(1, size):
        mine = merge(mine, jax.tree.map(lambda x, at=device: x[at], parts))
    return of_rows, mine
