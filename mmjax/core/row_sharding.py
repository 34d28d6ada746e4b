"""Rows of a batch over devices: what models, objectives and evaluators may know of a mesh."""

from __future__ import annotations

import math

import jax
from jax.sharding import NamedSharding


def num_shards(row_sharding: NamedSharding | None) -> int:
    """Over how many devices rows are split; others hold copies of these."""
    if row_sharding is None or not row_sharding.spec or row_sharding.spec[0] is None:
        return 1
    axes = row_sharding.spec[0] if isinstance(row_sharding.spec[0], tuple) else (row_sharding.spec[0],)
    return math.prod(row_sharding.mesh.shape[axis] for axis in axes)


def constrain_rows(x: jax.Array, row_sharding: NamedSharding | None) -> jax.Array:
    """``x`` [N, …] with its rows over the devices and nothing else of it; so is its gradient.

    Left to itself, the compiler divides activations as it finds parameters divided, by their width, and then holds
    all rows on every device. A number of rows that does not divide is left to it all the same: shares must be equal.
    A program for one device stays as it is, to the bit.
    """
    if row_sharding is None or row_sharding.mesh.size == 1 or x.shape[0] % num_shards(row_sharding):
        return x
    return jax.lax.with_sharding_constraint(x, row_sharding)
