"""Randomness inside the graph: a pure function of (seed, stream, step), so checkpoints hold none of it."""

import zlib

import jax


def key(seed: int, *, stream: str, step: jax.Array | int = 0) -> jax.Array:
    """A typed key for one named stream at one step; equal on every device and process.

    The stream's name is hashed with CRC-32, which, unlike Python's ``hash``, is the same in every process.
    """
    base = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(base, step)
