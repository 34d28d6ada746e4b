"""The progress of a task over many examples: one live line on a terminal, plain lines from time to time in a file."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable
from typing import Self, TextIO

_BAR = 24


class Counter:
    """A context manager; ``counter(done)`` draws the line, at most ten times a second.

    Args:
      total: number of items.
      unit: what is counted, such as ``examples``.
      already: how many were done before; they do not count for the rate.
      stream: standard error by default, so that standard output has only results.
      timer: a monotonic clock in seconds.
    """

    def __init__(
        self,
        total: int,
        *,
        unit: str,
        already: int = 0,
        stream: TextIO | None = None,
        timer: Callable[[], float] = time.monotonic,
    ):
        self._total, self._unit, self._already = total, unit, already
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._interval = 0.1 if self._live else 10.0
        self._timer = timer
        self._start = timer()
        self._drawn_at = self._start if not self._live else -math.inf

    def __call__(self, done: int) -> None:
        """Shows that ``done`` items are done."""
        now = self._timer()
        if now - self._drawn_at < self._interval:
            return
        self._drawn_at = now
        rate = (done - self._already) / max(now - self._start, 1e-9)
        texts = [f"{done:,}/{self._total:,} {self._unit}", f"{rate:,.0f}/s"]
        if rate > 0:
            texts.append(f"{time_left((self._total - done) / rate)} left")
        if not self._live:
            self._stream.write("  ".join(texts) + "\n")
        else:
            fraction = done / max(self._total, 1)
            filled = round(fraction * _BAR)
            text = "  ".join([texts[0], "#" * filled + "-" * (_BAR - filled) + f" {fraction:4.0%}", *texts[1:]])
            # The last column stays free: many terminals wrap when it is written.
            self._stream.write("\r" + text[: shutil.get_terminal_size().columns - 1] + "\x1b[K")
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def time_left(seconds: float) -> str:
    """A duration in at most two units: 8s, 1m12s, 3h05m."""
    minutes, whole = divmod(max(round(seconds), 0), 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes}m{whole:02d}s" if minutes else f"{whole}s"


def amount(size: float) -> str:
    """A number of bytes with a unit: 512 B, 1.5 KiB, 2.0 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
