"""Trainings as child processes, which end with the command that started them."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.runs.console import ADVICE

PARENT = "MMJAX_PARENT"
"""The environment variable with the process that a training belongs to."""

POLL_SECONDS = 0.5

logger = logging.getLogger(__name__)


class Training:
    """One ``mmjax train`` with its output at the end of a log file."""

    def __init__(self, arguments: Sequence[str], *, log: Path, cores: set[int], environ: Mapping[str, str]):
        """Starts it.

        Args:
            arguments: What follows ``mmjax train``.
            log: The file that its output is appended to.
            cores: The CPU cores that it may use; if empty, all.
            environ: Environment variables beside this process's own.
        """
        self.log = log
        self._start = log.stat().st_size if log.exists() else 0
        with open(log, "a") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mmjax", "train", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environ, PARENT: str(os.getpid())},
            )
        if cores:
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                os.sched_setaffinity(self._process.pid, cores)

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    def last_line(self) -> str:
        """The end of what it has printed."""
        return " ".join(self._lines()[-1:])

    def advice(self) -> list[str]:
        """What it has told its user to change."""
        return [line.removeprefix(ADVICE) for line in self._lines() if line.startswith(ADVICE)]

    def _lines(self) -> list[str]:
        with open(self.log, errors="replace") as file:
            file.seek(self._start)
            return file.read().strip().splitlines()

    @staticmethod
    def stop(trainings: Iterable[Training]) -> None:
        """Has all save and end, and waits for them; if the wait is interrupted, kills them."""
        processes = [training._process for training in trainings]
        for process in processes:
            process.terminate()
        try:
            for process in processes:
                process.wait()
        except BaseException:
            for process in processes:
                process.kill()
            raise


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise SystemExit, as Ctrl-C raises KeyboardInterrupt."""

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop_with_parent() -> None:
    """Has this process stop as by SIGTERM once the command that started it is gone, however that ended."""
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="mmjax-parent", daemon=True).start()
