"""Many processes that run one program: how they meet, agree, and end together."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from mmjax.core.config import ConfigError
from mmjax.parallel.cluster import COORDINATOR, Cluster, detect

INITIALISATION_SECONDS = 300  # machines of one job start minutes apart
HEARTBEAT_SECONDS = 30  # a silent process is given up after this, so that all stop within a minute
SHUTDOWN_SECONDS = 300  # the first process may still be writing the report
PATIENCE = 10.0  # seconds of waiting for the others before a word about it


@contextlib.contextmanager
def joined(
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    shared: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Joins the other processes, if there are any, before jax sees a device; at its end all leave together.

    Errors of ``shared``, which every process raises at the same point, pass through after that; see ``failing_at_once``
    for all others.
    """
    cluster = detect(coordinator=coordinator, processes=processes, process=process)
    if cluster is None or not _connect(cluster):
        yield
        return
    with failing_at_once(shared=shared):
        try:
            yield
        except shared:
            jax.distributed.shutdown()
            raise
        jax.distributed.shutdown()


@contextlib.contextmanager
def failing_at_once(
    *, shared: tuple[type[Exception], ...] = (), brief: tuple[type[Exception], ...] = (ConfigError,)
) -> Iterator[None]:
    """One of several processes that fails in this block says why and is gone, with nothing tidied up.

    Errors of ``shared`` pass through, because every process raises them; for those of ``brief`` one line says enough.

    To save, to close a checkpoint, or just to exit would wait for the others, who wait for this process in a
    collective. So they fail in that collective, or are told after ``HEARTBEAT_SECONDS``.
    """
    try:
        yield
    except shared:
        raise
    except BaseException as error:
        if not jax.distributed.is_initialized():  # jax.process_count() would first wait for all devices
            raise
        _abandon(error, brief)


def is_first() -> bool:
    """Whether this is the process that speaks for all: it alone writes what a run folder has one of."""
    return jax.process_index() == 0


def meet(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def same_for_all(value: int) -> int:
    """The first process's value, in every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(jnp.int32(value)))


def gathered(value: Any) -> list[Any]:
    """Every process's value, in their order: anything that JSON can say, and as JSON says it (tuples are lists).

    Nothing is unpickled, so a process can tell the others what it found, but cannot make them run it.
    """
    text = json.dumps(value).encode()
    if jax.process_count() == 1:
        return [json.loads(text)]
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    room = 1 << (int(lengths.max()) - 1).bit_length()  # few sizes, because each is a program of its own
    mine = np.zeros(room, np.uint8)
    mine[: len(text)] = np.frombuffer(text, np.uint8)
    rows = multihost_utils.process_allgather(mine)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def summed(value: int) -> jax.Array:
    """The sum of every process's value, still on its way: nothing waits for it before it is read."""
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("all"))
    mine = np.zeros(jax.local_device_count(), np.int32)
    mine[0] = value
    with jax.transfer_guard_host_to_device("allow"):
        array = jax.make_array_from_process_local_data(rows, mine)
    return _sum(jax.NamedSharding(mesh, jax.P()))(array)


@functools.cache
def _sum(whole: jax.NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(jnp.sum, out_shardings=whole)


def true_for_all(here: bool) -> bool:
    """Whether every process says so; all must ask."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(jnp.int32(here)).all())


def asked_to_stop(step: int) -> bool:
    """Whether a process got SIGTERM and this is the step after which all are to stop; ask after every step.

    It costs nothing until one does: then the coordinator takes the largest step that any process has asked with, and
    the next one is where all stop. That a handler of Python's own for SIGTERM would never let jax see the signal is
    why none may be set.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def _connect(cluster: Cluster) -> bool:
    """Joins the others; False where there are none."""
    place = cluster.coordinator or f"the address that {cluster.name} gives"
    if cluster.process == 0 and cluster.coordinator is not None:
        _check_free(cluster.coordinator)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    who = "a process" if cluster.process is None else f"process {cluster.process} of {cluster.processes}"
    waiting = threading.Timer(
        PATIENCE,
        lambda: print(
            f"{who} waits for the others at {place} (at most {INITIALISATION_SECONDS} s)", file=sys.stderr, flush=True
        ),
    )
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.process,
            cluster.local_device_ids,
            cluster_detection_method="deactivate" if cluster.name == "flags" else None,
            initialization_timeout=INITIALISATION_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError:
        if cluster.processes is not None:
            raise
        return False  # a TPU that belongs to no pod
    finally:
        waiting.cancel()
    return True


def _abandon(error: BaseException, brief: tuple[type[Exception], ...]) -> None:
    """Prints why, and ends the process without the goodbye that would wait for the others."""
    status = 1
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif isinstance(error, brief):
        print(f"mmjax: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2 if isinstance(error, ConfigError) else 1
    else:
        traceback.print_exception(error)
        if isinstance(error, jax.errors.JaxRuntimeError):
            print("mmjax: where another process failed first, its own output says why", file=sys.stderr)
    for child in multiprocessing.active_children():
        child.kill()  # the data workers, which an ordinary exit would end
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _check_free(address: str) -> None:
    """Raises where the port is taken: the service that is to listen there would only crash."""
    port = int(address.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError as error:
            raise ConfigError(
                f"{COORDINATOR}={address}: cannot listen there ({error.strerror}); use a free port"
            ) from None
