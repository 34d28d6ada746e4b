"""Files of JSON lines that are only appended to, and whose lines are complete or absent."""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmjax.core.atomic import write_atomically
from mmjax.core.config import ConfigError
from mmjax.core.files import check_regular

logger = logging.getLogger(__name__)

_MAX_PENDING = 100_000  # lines kept in memory while the disk is full


class JsonlWriter:
    """Appends JSON objects to ``path``, one per line; a line survives a kill once ``write`` has returned True.

    A line that cannot be written (the disk is full, the folder read-only) stays in memory and is written before the
    next one; a warning is logged when writing begins to fail and when it works again. The file is opened for each line,
    so it may be moved or deleted in between.
    """

    def __init__(self, path: Path):
        self._path = path
        self._pending: collections.deque[bytes] = collections.deque(maxlen=_MAX_PENDING)
        self._size: int | None = None  # length of the complete lines; None: not known yet
        self.failure = ""

    def write(self, value: Any) -> bool:
        """Whether this line and all earlier ones are written."""
        self._pending.append(json.dumps(value).encode() + b"\n")
        return self.flush()

    def flush(self) -> bool:
        """Tries again to write pending lines."""
        try:
            if self._pending:
                self._append()
        except OSError as error:
            if not self.failure:
                logger.warning(
                    f"{self._path.name} cannot be written ({error.strerror}); its lines are kept until it can be"
                )
            self.failure = error.strerror or str(error)
            return False
        if self.failure:
            logger.warning(f"{self._path.name} can be written again; no line is lost")
            self.failure = ""
        return True

    def _append(self) -> None:
        with open(self._path, "a+b", buffering=0) as file:
            if self._size is None:
                self._size = file.seek(0, os.SEEK_END)
                file.seek(max(self._size - 1, 0))
                if file.read(1) not in (b"", b"\n"):  # a kill has truncated the last line
                    self._pending.appendleft(b"\n")
            elif (end := file.seek(0, os.SEEK_END)) < self._size:  # the file was deleted
                self._size = end
            else:
                file.truncate(self._size)
            while self._pending:
                line = self._pending[0]
                try:
                    if file.write(line) != len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    with contextlib.suppress(OSError):
                        file.truncate(self._size)
                    raise
                self._size += len(line)
                self._pending.popleft()


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each line that is a JSON object, as text and parsed; none if the file cannot be read.

    Other lines are skipped, such as one that a kill has truncated.
    """
    try:
        check_regular(Path(path))
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError, MemoryError):
        return
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield line, value


def replace_content(path: Path, content: bytes) -> None:
    """Replaces the content of a file by a part of it, atomically."""
    try:
        if path.read_bytes().startswith(content):  # this needs no free space, which there may not be
            os.truncate(path, len(content))
        else:
            write_atomically(path, content, sync=True)
    except OSError as error:
        raise ConfigError(
            f"--workdir={path.parent}: {path.name} cannot be written ({error.strerror}); make room there"
        ) from None
