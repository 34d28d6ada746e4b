"""Small values that processes exchange: barriers, broadcasts, and reductions over hosts."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils


def is_main_process() -> bool:
    """Whether this is process 0, which alone logs and writes the files that a run folder has once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has reached the barrier ``name``."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast(value: int) -> int:
    """Returns process 0's integer in every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(jnp.int32(value)))


def all_gather(value: Any) -> list[Any]:
    """Returns the values of all processes, ordered by process index.

    The values travel as JSON, so tuples arrive as lists. Nothing is unpickled: no process can make another run code.
    """
    text = json.dumps(value).encode()
    if jax.process_count() == 1:
        return [json.loads(text)]
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    capacity = 1 << (int(lengths.max()) - 1).bit_length()  # a power of two, because each size compiles a program
    padded = np.zeros(capacity, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def all_sum(value: int) -> jax.Array:
    """Returns the sum of all processes' integers as an array that is computed asynchronously."""
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    local = np.zeros(jax.local_device_count(), np.int32)
    local[0] = value
    with jax.transfer_guard_host_to_device("allow"):
        array = jax.make_array_from_process_local_data(jax.NamedSharding(mesh, jax.P("all")), local)
    return _sum(jax.NamedSharding(mesh, jax.P()))(array)


@functools.cache
def _sum(replicated: jax.NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(jnp.sum, out_shardings=replicated)


def all_true(value: bool) -> bool:
    """Whether ``value`` is true in every process; every process must call this."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(jnp.int32(value)).all())


def should_stop(step: int) -> bool:
    """Whether all processes stop after ``step`` because one of them got SIGTERM; call this after every step.

    JAX's coordinator takes the largest step that any process has reached and stops all of them at the next one. JAX
    must see the signal itself, so no Python handler for SIGTERM may be installed. A call costs nothing before a signal
    arrives.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
