"""A lock on a folder that lasts as long as its process, and tells how the process before ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
from pathlib import Path
from typing import Self


class Lock:
    """Holds the lock file ``path``; raises BlockingIOError if another process does.

    The file names its holder, and is empty after an orderly end.

    Attributes:
      died: the process that held it before, if that ended without a word: ``PID on HOST``; else empty.
    """

    def __init__(self, path: Path):
        self._path = path
        self._owner = f"{os.getpid()} on {platform.node()}"
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self._file.close()
            raise
        self.died = _read_owner(path)
        with contextlib.suppress(OSError):  # a full disk
            self._file.truncate(0)
            self._file.write(self._owner.encode())

    def is_deleted(self) -> bool:
        """Whether the file is gone; raises BlockingIOError if another process has made it again."""
        try:
            owner = _read_owner(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # its file system cannot be reached
            return False
        if owner not in ("", self._owner):
            raise BlockingIOError(owner)
        return False

    def release(self) -> None:
        """Ends the lock in good order; a second call has no effect."""
        if not self._file.closed:
            with contextlib.suppress(OSError):
                self._file.truncate(0)
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def find_owner(path: Path) -> str:
    """The process that holds the lock file ``path`` now, as text; empty if none does."""
    try:
        with open(path) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read_owner(path) or "?"
    except OSError:  # there is no such file
        pass
    return ""


def _read_owner(path: Path) -> str:
    return path.read_text(errors="replace")[:200]
