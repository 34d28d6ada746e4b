"""Files of lines that are only ever added to, and whose lines are there whole or not at all."""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import os
from pathlib import Path

from mmjax.core.config import ConfigError

logger = logging.getLogger(__name__)

_KEPT = 100_000  # lines in memory while the disk takes none


class LineFile:
    """Appends lines to ``path``; each outlives the process once ``write`` has returned True.

    A line that cannot be written (the disk is full, the folder read-only) stays in memory and is written before the
    next one; a warning is logged when that begins and when it is over. The file is opened for each line, so that it may
    be moved or deleted in between.
    """

    def __init__(self, path: Path):
        self._path = path
        self._waiting: collections.deque[bytes] = collections.deque(maxlen=_KEPT)
        self._size: int | None = None  # up to where the file is whole; None: not looked at yet
        self.trouble = ""

    def write(self, line: str) -> bool:
        """Whether the line, and all before it, are written."""
        self._waiting.append(line.encode() + b"\n")
        return self.flush()

    def flush(self) -> bool:
        """Tries again to write what is still to be written."""
        try:
            if self._waiting:
                self._append()
        except OSError as error:
            if not self.trouble:
                logger.warning(
                    f"{self._path.name} cannot be written ({error.strerror}); its lines are kept until it can be"
                )
            self.trouble = error.strerror or str(error)
            return False
        if self.trouble:
            logger.warning(f"{self._path.name} can be written again; no line is lost")
            self.trouble = ""
        return True

    def _append(self) -> None:
        with open(self._path, "a+b", buffering=0) as file:
            if self._size is None:
                self._size = file.seek(0, os.SEEK_END)
                file.seek(max(self._size - 1, 0))
                if file.read(1) not in (b"", b"\n"):  # the last line was torn by a kill
                    self._waiting.appendleft(b"\n")
            elif self._size < file.seek(0, os.SEEK_END):
                file.truncate(self._size)
            while self._waiting:
                line = self._waiting[0]
                try:
                    if file.write(line) != len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    with contextlib.suppress(OSError):
                        file.truncate(self._size)
                    raise
                self._size += len(line)
                self._waiting.popleft()


def shorten(path: Path, kept: bytes) -> None:
    """Leaves only ``kept`` in the file: at any moment it holds all of that."""
    try:
        if path.read_bytes().startswith(kept):  # needs no room, of which there may be none
            os.truncate(path, len(kept))
            return
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            file.write(kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(
            f"--workdir={path.parent}: {path.name} cannot be written ({error.strerror}); make room there"
        ) from None
