"""Captions by their place: the first captions of all images are contrasted, the second ones, and so on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.groups import split_place
from mmjax.core.types import Provenance
from mmjax.objectives.common.targets import Labels, make_targets

Placed = tuple[Labels, jax.Array]
"""The labels of rows and their places i32[N]."""


def places_of(text: Provenance, count: int) -> jax.Array:
    """i32[M]: each text's place, below ``count``; 0 for all if texts have none."""
    if text.group is None:
        return jnp.zeros(text.ids.shape[0], jnp.int32)
    return jnp.minimum(split_place(text.group)[0], count - 1)


def numbers_of(text: Provenance) -> jax.Array:
    """i32[M]: the same number for equal texts; different ones for all if texts have no places."""
    return jnp.arange(text.ids.shape[0], dtype=jnp.int32) if text.group is None else split_place(text.group)[1]


def repeat_rows(rows: Any, count: int) -> Any:
    """Every row ``count`` times, one after the other, so that a device's rows stay its own."""
    return jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), rows)


def row_places(rows: int, count: int) -> jax.Array:
    """i32[rows · count]: the places that the copies of ``repeat_rows`` are compared with."""
    return jnp.tile(jnp.arange(count, dtype=jnp.int32), rows)


def placed_targets(rows: Placed, columns: Placed) -> tuple[jax.Array, jax.Array]:
    """Targets f32[N, M] of one place, and bool[N, M]: the pairs of one place without padding, negatives among them."""
    target, pairs = make_targets(rows[0], columns[0])
    pairs &= rows[1][:, None] == columns[1][None, :]
    return jnp.where(pairs, target, 0.0), pairs
