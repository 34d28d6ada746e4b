"""Rows of a batch over devices: what models, objectives and evaluators may know of a mesh."""

from __future__ import annotations

import math

import jax
from jax.sharding import NamedSharding


def shards_of(rows: NamedSharding | None) -> int:
    """Over how many devices rows are split; others hold copies of these."""
    if rows is None or not rows.spec or rows.spec[0] is None:
        return 1
    axes = rows.spec[0] if isinstance(rows.spec[0], tuple) else (rows.spec[0],)
    return math.prod(rows.mesh.shape[axis] for axis in axes)


def spread(x: jax.Array, rows: NamedSharding | None) -> jax.Array:
    """``x`` [N, …] with its rows over the devices and nothing else of it; so is its gradient.

    Left to itself, the compiler divides activations as it finds parameters divided, by their width, and then holds
    all rows on every device. A number of rows that does not divide is left to it all the same: shares must be equal.
    A program for one device stays as it is, to the bit.
    """
    if rows is None or rows.mesh.size == 1 or x.shape[0] % shards_of(rows):
        return x
    return jax.lax.with_sharding_constraint(x, rows)
