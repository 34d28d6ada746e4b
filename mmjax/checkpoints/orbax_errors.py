"""Checkpoints that cannot be written or read: what to call it, and what not to lose over it."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import time
import traceback
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.core.config import ConfigError

_LONGEST = 160  # characters of a reason
_PROBE = 1 << 16  # bytes that a folder must take before a save begins
_VANISHES_WITHIN = 2.0  # seconds that a folder which is being deleted may still be there


class NotSaved(RuntimeError):
    """A checkpoint could not be written, and the run ends here."""


class Damaged(ConfigError):
    """A checkpoint that is not what was saved."""

    def __init__(self, step: int, cause: str):
        super().__init__(
            f"--step={step}: this checkpoint is damaged ({cause}); name another one, or start training there again, "
            "which goes on from the newest that is whole"
        )
        self.step = step
        self.cause = cause


def reason(error: BaseException) -> str:
    """What went wrong, in a few words, from an error of orbax or tensorstore and all that stands behind it."""
    last: BaseException | None = error
    while last is not None:
        text = " ".join(str(last).split())
        if isinstance(last, FileNotFoundError) and last.filename:
            return f"{Path(last.filename).name} is missing"
        if isinstance(last, OSError) and last.strerror:
            return last.strerror
        if code := re.search(r"os_error_code='(\d+)'", text):
            return os.strerror(int(code[1]))
        if files := re.findall(r'"(/[^"\\]+)', text):  # tensorstore's: of a long sentence the innermost file counts
            status = re.search(r"\b[A-Z]+_[A-Z_]+\b", text)
            what = status[0].replace("_", " ").lower() if status else "unreadable"
            return f"{what} in {'/'.join(Path(files[-1]).parts[-2:])}"
        named = text if isinstance(last, (ValueError, OSError)) else f"{type(last).__name__}: {text}"
        last = last.__cause__ or (None if last.__suppress_context__ else last.__context__)
    return named if len(named) <= _LONGEST else named[: _LONGEST - 1] + "…"


def check_memory(tree: Any) -> None:
    """Raises where arrays of these shapes are more than this machine can hold, whoever claims them."""
    claimed = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if claimed > there * jax.process_count():
        raise ConfigError(
            f"--workdir: its weights claim to be {claimed / 2**30:,.0f} GiB, more than this machine's "
            f"{there / 2**30:,.0f} GiB of memory; read them on a larger one"
        )


def check_writable(folder: Any) -> None:
    """Raises OSError where nothing can be put into ``folder``.

    Where orbax cannot begin a save, its threads would wait for minutes for the folder that it could not make.
    """
    probe = folder / ".writable"
    try:
        probe.mkdir(exist_ok=True)
        (probe / "probe").write_bytes(bytes(_PROBE))
    finally:
        with contextlib.suppress(OSError):
            (probe / "probe").unlink()
        with contextlib.suppress(OSError):
            probe.rmdir()


def vanishes(folder: Any) -> bool:
    """Whether ``folder`` is gone, or is so in a moment: deleting takes a while."""
    deadline = time.monotonic() + _VANISHES_WITHIN
    while folder.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def free_place(path: Any) -> Any:
    """``path``, or with the first number behind it that nothing has yet."""
    place, number = path, 1
    while place.exists():
        number += 1
        place = path.with_name(f"{path.name}.{number}")
    return place


class _NotOfOrbax(logging.Filter):
    """Keeps back the stack traces that every thread of a failed save logs; what failed is raised besides.

    With several processes it is raised only when the threads of all have given up waiting for each other, minutes
    later. So the first error is remembered.
    """

    noticed: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == "asyncio":
            return "exception was never retrieved" not in record.getMessage()
        trace = record.exc_info[2] if record.exc_info else None
        files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
        if not any(f"{os.sep}orbax{os.sep}" in file for file in files):
            return True
        assert record.exc_info
        self.noticed = self.noticed or record.exc_info[1]
        return False


_FILTER = _NotOfOrbax()


def quieten_orbax() -> None:
    """Leaves saying what went wrong with a checkpoint to those who know the run."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_FILTER)  # a second time is the same as once


def noticed() -> BaseException | None:
    """The first error that a thread of orbax has logged since this was last asked."""
    error, _FILTER.noticed = _FILTER.noticed, None
    return error
