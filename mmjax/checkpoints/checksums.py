"""Checksums of arrays, computed on the devices that hold them.

The file formats of a checkpoint detect a truncated or missing file, but not a flipped bit in the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_CHUNK = 1 << 22  # elements per NumPy operation


def tree_checksums(trees: Mapping[str, Any]) -> dict[str, list[int]]:
    """Returns the checksums of each tree's arrays, in the order of its leaves: ``Σ_i (2i + 1) · bits_i mod 2³²``.

    Integer sums modulo 2³² do not depend on the order of summation, hence not on the mesh or the number of processes.
    The weights are odd and thus invertible, so a single changed element always changes the sum. All processes must
    call this.
    """
    leaves = {name: jax.tree.leaves(tree) for name, tree in trees.items()}
    leaves = {name: arrays for name, arrays in leaves.items() if arrays}
    sharding = next(iter(leaves.values()))[0].sharding if leaves else None
    everywhere = jax.NamedSharding(sharding.mesh, jax.P()) if isinstance(sharding, jax.NamedSharding) else None
    sums = jax.jit(_leaf_checksums, out_shardings=everywhere)(leaves)
    return {name: jax.device_get(values).tolist() for name, values in sums.items()}


def array_checksums(arrays: Sequence[np.ndarray]) -> list[int]:
    """Returns the checksums of host arrays."""
    sums = []
    for array in arrays:
        bits = np.ascontiguousarray(array).reshape(-1).view(_unsigned(array.dtype.itemsize))
        total = 0
        for start in range(0, bits.size, _CHUNK):
            chunk = bits[start : start + _CHUNK].astype(np.uint32)
            index = (np.arange(start, start + chunk.size, dtype=np.uint64) & 0xFFFFFFFF).astype(np.uint32)
            total += int((chunk * (2 * index + np.uint32(1))).sum(dtype=np.uint32))
        sums.append(total % (1 << 32))
    return sums


def _leaf_checksums(leaves: dict[str, list[jax.Array]]) -> dict[str, jax.Array]:
    return {name: jnp.stack([_leaf_checksum(array) for array in arrays]) for name, arrays in leaves.items()}


def _leaf_checksum(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    # Elements of 8 bytes become 2 of 4 bytes along a new last axis.
    bits = jax.lax.bitcast_convert_type(array, _unsigned(array.dtype.itemsize)).astype(jnp.uint32)
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % (1 << 32)
        index += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
    return jnp.sum(bits * (jnp.uint32(2) * index + jnp.uint32(1)), dtype=jnp.uint32)


def _unsigned(size: int) -> Any:
    return {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}[size]
