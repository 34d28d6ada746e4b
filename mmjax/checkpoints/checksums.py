"""Checksums of arrays: computed where the arrays live, so that a checkpoint can tell when it no longer is what it was.

The file formats below a checkpoint notice a file that is cut off or gone, but not a bit that has flipped inside the
data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_CHUNK = 1 << 22  # elements that numpy weighs at a time


def of_trees(trees: Mapping[str, Any]) -> dict[str, list[int]]:
    """For each tree the checksums of its arrays, in the order of its leaves: ``Σ_i (2i + 1) · bits_i mod 2³²``.

    Integer sums modulo 2³² do not depend on their order, so neither the mesh nor the number of processes matters. The
    weights are odd, hence invertible: one changed element always changes the sum. All processes must call it.
    """
    leaves = {name: jax.tree.leaves(tree) for name, tree in trees.items()}
    leaves = {name: arrays for name, arrays in leaves.items() if arrays}
    sharding = next(iter(leaves.values()))[0].sharding if leaves else None
    everywhere = jax.NamedSharding(sharding.mesh, jax.P()) if isinstance(sharding, jax.NamedSharding) else None
    sums = jax.jit(_of_leaves, out_shardings=everywhere)(leaves)
    return {name: jax.device_get(values).tolist() for name, values in sums.items()}


def of_arrays(arrays: Sequence[np.ndarray]) -> list[int]:
    """The same of arrays on the host."""
    sums = []
    for array in arrays:
        bits = np.ascontiguousarray(array).reshape(-1).view(_unsigned(array.dtype.itemsize))
        total = 0
        for start in range(0, bits.size, _CHUNK):
            part = bits[start : start + _CHUNK].astype(np.uint32)
            index = (np.arange(start, start + part.size, dtype=np.uint64) & 0xFFFFFFFF).astype(np.uint32)
            total += int((part * (2 * index + np.uint32(1))).sum(dtype=np.uint32))
        sums.append(total % (1 << 32))
    return sums


def _of_leaves(leaves: dict[str, list[jax.Array]]) -> dict[str, jax.Array]:
    return {name: jnp.stack([_of_leaf(array) for array in arrays]) for name, arrays in leaves.items()}


def _of_leaf(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    # An element of eight bytes becomes two of four, in a further axis.
    bits = jax.lax.bitcast_convert_type(array, _unsigned(array.dtype.itemsize)).astype(jnp.uint32)
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % (1 << 32)
        index += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
    return jnp.sum(bits * (jnp.uint32(2) * index + jnp.uint32(1)), dtype=jnp.uint32)


def _unsigned(size: int) -> Any:
    return {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}[size]
