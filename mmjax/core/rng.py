"""Random keys as a pure function of (seed, stream, step), so that checkpoints hold no random state."""

import zlib

import jax


def key(seed: int | jax.Array, *, stream: str, step: jax.Array | int = 0) -> jax.Array:
    """A key for one named stream at one step; the same on every device and in every process.

    CRC-32 hashes the stream's name, because Python's ``hash`` differs between processes.
    """
    base = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(base, step)
