"""Files that stay open for reading in ranges: by position, in a bounded number, by many threads."""

from __future__ import annotations

import collections
import os
import threading

LIMIT = 256


class _File:
    """An open file, closed when its last user lets go of it."""

    def __init__(self, path: str):
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class Files:
    """The files last read in ranges, at most ``LIMIT``; safe over threads and forks."""

    def __init__(self) -> None:
        self._open: collections.OrderedDict[str, _File] = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``: fewer where the file ends."""
        file = self._get(path)
        data = os.pread(file.number, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]  # some file systems, and all beyond 2 GiB, give less than what is asked for
        while data and sum(map(len, parts)) < length:
            done = sum(map(len, parts))
            data = os.pread(file.number, length - done, offset + done)
            parts.append(data)
        return b"".join(parts)

    def forget_unless(self, path: str, stat: os.stat_result) -> None:
        """Lets go of a file that is no longer what its name stands for."""
        with self._lock:
            file = self._open.get(path)
            if file is not None and not os.path.samestat(os.fstat(file.number), stat):
                del self._open[path]

    def after_fork(self) -> None:
        """The lock may have been held by a thread that the child does not have; open files are as good as before."""
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


FILES = Files()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=FILES.after_fork)
