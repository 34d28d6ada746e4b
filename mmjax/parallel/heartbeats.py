"""Names the one of several processes that has stopped, before the others end because of it."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax._src import distributed  # jax.distributed has no public way to the coordinator's keys and values

from mmjax.core.stuck_processes import describe_stuck

logger = logging.getLogger(__name__)

BEAT_SECONDS = 2.0
SILENT_SECONDS = 8.0  # JAX ends all processes 15 to 30 s after one of them has stopped
_KEY = "mmjax/heartbeat"


class Heartbeats:
    """Watches the beats of all processes: the main process those of the others, each other one that the main answers.

    Args:
      process: the index of this process.
      post: hands this process's beat to the main process; waits while that is stopped.
      read: the last beat of each process, by index; called in the main process alone.
      main: a description of the main process, for the others; empty before its first beat.
    """

    def __init__(
        self,
        process: int,
        *,
        post: Callable[[str], None],
        read: Callable[[], Mapping[int, str]],
        main: Callable[[], str],
        now: Callable[[], float] = time.monotonic,
    ):
        self._process = process
        self._post, self._read, self._main, self._now = post, read, main, now
        self._count = 0
        self._beats: dict[int, str] = {}
        self._seen = {0: now()} if process else {}
        self._reported: set[int] = set()

    def beat(self) -> None:
        """Posts one beat and takes in those of the others; may wait for the main process."""
        self._count += 1
        self._post(f"{self._count} {os.getpid()} {platform.node()}")
        if self._process:
            self._beats[0] = self._beats.get(0) or self._main()
            self._seen[0] = self._now()
            return
        beats = self._read()
        self._seen = {process: seen for process, seen in self._seen.items() if process in beats}  # others have left
        for process, text in beats.items():
            if process and self._beats.get(process) != text:
                self._beats[process] = text
                self._seen[process] = self._now()

    def check(self) -> None:
        """Warns once of each process that has been silent for long, and says when it is back."""
        for process, seen in list(self._seen.items()):
            silent = self._now() - seen
            if silent < SILENT_SECONDS:
                if process in self._reported:
                    self._reported.remove(process)
                    logger.warning(f"process {process} gives signs of life again")
            elif process not in self._reported:
                self._reported.add(process)
                _, pid, host = (self._beats.get(process) or "? ? ?").split(" ", 2)
                reason = describe_stuck(int(pid)) if host == platform.node() else ""
                logger.warning(
                    f"process {process} (PID {pid} on {host}) has given no sign of life for {silent:.0f} s: it "
                    f"{reason or 'is stopped, or its machine cannot be reached'}; without it all others end soon"
                )

    def forgive(self) -> None:
        """Takes no process for silent that this one could not hear because it was stopped itself."""
        self._seen = dict.fromkeys(self._seen, self._now())


@contextlib.contextmanager
def exchange_heartbeats() -> Iterator[None]:
    """Exchanges beats while the block runs, in threads of their own; for use after ``jax.distributed.initialize``."""
    state = distributed.global_state
    client: Any = state.client

    def read() -> dict[int, str]:
        return {int(key.rpartition("/")[2]): text for key, text in client.key_value_dir_get(f"{_KEY}/")}

    def read_main() -> str:
        # It must not wait: Python ends badly while a thread of it is about to come back from C++.
        try:
            return client.key_value_try_get(f"{_KEY}/0")
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return ""
            raise

    beats = Heartbeats(
        state.process_id,
        post=lambda text: client.key_value_set(f"{_KEY}/{state.process_id}", text, allow_overwrite=True),
        read=read,
        main=read_main,
    )
    closed = threading.Event()

    def post() -> None:
        while not closed.wait(BEAT_SECONDS):
            with contextlib.suppress(Exception):  # the others are ending
                beats.beat()

    def watch() -> None:
        before = time.monotonic()
        while not closed.wait(BEAT_SECONDS / 2):
            asleep, before = time.monotonic() - before, time.monotonic()
            if asleep >= SILENT_SECONDS / 2:
                logger.warning(f"this process was stopped for {asleep:.0f} s; the others may have given it up")
                beats.forgive()
            elif not closed.is_set():
                beats.check()

    threads = [threading.Thread(target=target, name="mmjax-heartbeat", daemon=True) for target in (post, watch)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        closed.set()
        for thread in threads:
            thread.join(BEAT_SECONDS)
        with contextlib.suppress(Exception):
            client.key_value_delete(f"{_KEY}/{state.process_id}")
