"""How the processes of one run start and end together."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

import jax

from mmjax.core.config import ConfigError
from mmjax.core.printable import printable
from mmjax.parallel.cluster import COORDINATOR, Cluster, detect
from mmjax.parallel.heartbeats import exchange_heartbeats

INITIALIZATION_SECONDS = 300  # machines of one job may start minutes apart
HEARTBEAT_SECONDS = 30  # a process that is silent for this long counts as dead; the others then stop within a minute
SHUTDOWN_SECONDS = 300  # process 0 may still be writing the report
WAIT_MESSAGE_SECONDS = 10.0  # wait this long for other processes before printing a message

Errors = tuple[type[Exception], ...]


@contextlib.contextmanager
def join(
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    shared_errors: Errors = (),
) -> Iterator[None]:
    """Connects this process to the others of the run, if any, and disconnects all of them together at the end.

    Enter this before JAX initializes its devices.

    Args:
      coordinator: HOST:PORT of process 0; see ``cluster.py`` for what is detected.
      processes: number of processes.
      process: index of this process.
      shared_errors: errors that every process raises at the same point. They are re-raised after an orderly shutdown;
        any other error ends the process at once, as in ``fail_fast``.
    """
    cluster = detect(coordinator=coordinator, processes=processes, process=process)
    if cluster is None or not _connect(cluster):
        yield
        return
    with fail_fast(shared_errors=shared_errors):
        try:
            with exchange_heartbeats():
                yield
        except shared_errors:
            jax.distributed.shutdown()
            raise
        jax.distributed.shutdown()


@contextlib.contextmanager
def fail_fast(
    *,
    shared_errors: Errors = (),
    one_line_errors: Errors = (ConfigError,),
    before_exit: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Ends one of several processes at once if this block raises, without any cleanup.

    Saving, closing a checkpoint manager or a normal exit would wait for the other processes, which wait for this one
    in a collective. After a hard exit their collective fails, or they are stopped after ``HEARTBEAT_SECONDS``.

    Args:
      shared_errors: errors that every process raises; these propagate normally.
      one_line_errors: errors that are printed without a traceback.
      before_exit: called before the process ends at once.
    """
    try:
        yield
    except shared_errors:
        raise
    except BaseException as error:
        if not jax.distributed.is_initialized():  # jax.process_count() would first wait for all devices
            raise
        before_exit()
        _exit_now(error, one_line_errors)


def _connect(cluster: Cluster) -> bool:
    """Whether there are other processes, which are then connected."""
    address = cluster.coordinator or f"the address that {cluster.name} gives"
    if cluster.process == 0 and cluster.coordinator is not None:
        _check_port_is_free(cluster.coordinator)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    name = "a process" if cluster.process is None else f"process {cluster.process} of {cluster.processes}"
    message = f"{name} waits for the others at {address} (at most {INITIALIZATION_SECONDS} s)"
    waiting = threading.Timer(WAIT_MESSAGE_SECONDS, lambda: print(message, file=sys.stderr, flush=True))
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.process,
            cluster.local_device_ids,
            cluster_detection_method="deactivate" if cluster.name == "flags" else None,
            initialization_timeout=INITIALIZATION_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError:
        if cluster.processes is not None:
            raise
        return False  # a single TPU host
    finally:
        waiting.cancel()
    return True


def _exit_now(error: BaseException, one_line_errors: Errors) -> None:
    """Prints the error and ends the process without waiting for the others."""
    status = 1
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif isinstance(error, one_line_errors):
        print(f"mmjax: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        status = 2 if isinstance(error, ConfigError) else 1
    else:
        traceback.print_exception(error)
        if isinstance(error, jax.errors.JaxRuntimeError):
            print("mmjax: if another process failed first, see its output for the reason", file=sys.stderr)
    for child in multiprocessing.active_children():
        child.kill()  # data workers, which a normal exit would end
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _check_port_is_free(address: str) -> None:
    """Raises if the port is taken; the coordination service itself would crash."""
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
