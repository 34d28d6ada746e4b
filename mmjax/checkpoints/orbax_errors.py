"""Errors of checkpoints, and everything that depends on the wording of Orbax's and TensorStore's messages.

tests/checkpoints/test_orbax_errors.py fails if these libraries change their messages.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmjax.core.config import ConfigError

MAX_LENGTH = 160  # characters of an explanation

_OS_ERROR = re.compile(r"os_error_code='(\d+)'")  # TensorStore quotes the error number of a failed system call
_FILE = re.compile(
    r'(?<!\\)"(/[^"\\]+)'
)  # and the files that it was reading, the innermost last; a quoted spec follows
_STATUS = re.compile(r"\b[A-Z]+_[A-Z_]+\b")  # and a status such as DATA_LOSS
_LOOP_CLOSED = "Event loop is closed"  # asyncio's error for a callback that comes too late
_UNRETRIEVED = "exception was never retrieved"  # asyncio's message for the threads of a failed save


class CheckpointNotSaved(RuntimeError):
    """A checkpoint, or a file that belongs to it, could not be written, and the run ends."""


class DamagedCheckpoint(ConfigError):
    """A checkpoint that cannot be read, or whose content differs from what was saved."""

    def __init__(self, step: int, cause: str):
        super().__init__(
            f"--step={step}: this checkpoint is damaged ({cause}); choose another step, or start training there again, "
            "which goes on from the newest intact one"
        )
        self.step = step
        self.cause = cause


def explain(error: BaseException) -> str:
    """Returns the reason for an error of Orbax or TensorStore in a few words, following its causes."""
    cause: BaseException | None = error
    while cause is not None:
        text = " ".join(str(cause).split())
        if isinstance(cause, FileNotFoundError) and cause.filename:
            return f"{Path(cause.filename).name} is missing"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if code := _OS_ERROR.search(text):
            return os.strerror(int(code[1]))
        if files := _FILE.findall(text):
            status = _STATUS.search(text)
            problem = status[0].replace("_", " ").lower() if status else "unreadable"
            return f"{problem} in {'/'.join(Path(files[-1]).parts[-2:])}"
        innermost = text if isinstance(cause, (ValueError, OSError)) else f"{type(cause).__name__}: {text}"
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return innermost if len(innermost) <= MAX_LENGTH else innermost[: MAX_LENGTH - 1] + "…"


class _OrbaxFilter(logging.Filter):
    """Drops warnings about settings that we chose, and the tracebacks that each thread of a failed save logs.

    It remembers the first error. That is raised as well, but with several processes only after all their threads have
    given up waiting for each other, which takes minutes; hence ``first_error``.
    """

    first_error: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == "asyncio":
            return _UNRETRIEVED not in record.getMessage()
        if record.levelno <= logging.WARNING and f"{os.sep}orbax{os.sep}" in record.pathname:
            return False
        trace = record.exc_info[2] if record.exc_info else None
        files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
        if not any(f"{os.sep}orbax{os.sep}" in file for file in files):
            return True
        assert record.exc_info
        self.first_error = self.first_error or record.exc_info[1]
        return False


_FILTER = _OrbaxFilter()


def filter_orbax_logs() -> None:
    """Keeps Orbax's tracebacks and warnings out of the log and off stderr; ``Checkpoints`` reports failed saves."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_FILTER)  # adding it again has no effect
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
    if not isinstance(sys.unraisablehook, _UnraisableHook):
        sys.unraisablehook = _UnraisableHook(sys.unraisablehook)


class _UnraisableHook:
    """Drops what a failed save leaves behind: TensorStore's callbacks to a closed event loop, and loops half made."""

    def __init__(self, previous: Callable[[Any], Any]):
        self._previous = previous

    def __call__(self, unraisable: Any) -> None:
        closed = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == _LOOP_CLOSED
        if not closed and unraisable.object is not asyncio.BaseEventLoop.__del__:
            self._previous(unraisable)


def take_logged_error() -> BaseException | None:
    """Returns the first error that Orbax has logged since the last call."""
    error, _FILTER.first_error = _FILTER.first_error, None
    return error
