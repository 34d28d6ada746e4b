"""Local files that stay open, for reading ranges from many threads."""

from __future__ import annotations

import collections
import errno
import os
import stat
import threading

LIMIT = 256  # open files


def open_regular(path: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file; OSError for all else, which may wait for ever, never end, or act when opened."""
    check_regular(path, os.stat(path))
    number = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        check_regular(path, os.fstat(number))  # what is there now
    except OSError:
        os.close(number)
        raise
    return number


def check_regular(path: str, status: os.stat_result) -> None:
    """OSError if ``status`` is not that of a regular file."""
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", path)


class _File:
    """An open file, closed when nothing refers to it."""

    def __init__(self, path: str):
        self.number = open_regular(path)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class OpenFiles:
    """The ``LIMIT`` files that were read last; for threads and forked processes."""

    def __init__(self) -> None:
        self._open: collections.OrderedDict[str, _File] = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Reads ``length`` bytes from ``offset``, or fewer if the file ends before."""
        file = self._get(path)
        data = os.pread(file.number, length, offset)
        if len(data) == length or not data:
            return data
        chunks = [data]  # some file systems return less than asked for, and all do beyond 2 GiB
        while data and sum(map(len, chunks)) < length:
            done = sum(map(len, chunks))
            data = os.pread(file.number, length - done, offset + done)
            chunks.append(data)
        return b"".join(chunks)

    def forget_unless(self, path: str, status: os.stat_result) -> None:
        """Closes the file of this path if another file took its place."""
        with self._lock:
            file = self._open.get(path)
            if file is not None and not os.path.samestat(os.fstat(file.number), status):
                del self._open[path]

    def after_fork(self) -> None:
        """Replaces the lock, which a thread of the parent may hold; open files stay valid."""
        self._lock = threading.Lock()

    def _get(self, path: str) -> _File:
        with self._lock:
            file = self._open.get(path)
            if file is not None:
                self._open.move_to_end(path)
                return file
        file = _File(path)
        with self._lock:
            self._open[path] = file
            self._open.move_to_end(path)
            dropped = [self._open.popitem(last=False) for _ in range(len(self._open) - LIMIT)]
        del dropped  # closed here, outside the lock
        return file


FILES = OpenFiles()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=FILES.after_fork)
