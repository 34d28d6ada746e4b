"""What a run shows while it runs: one live line, and above it what the package's loggers say."""

from __future__ import annotations

import collections
import functools
import io
import logging
import math
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, TextIO

from mmjax.core.printable import printable

logger = logging.getLogger(__name__)

_PACKAGE = logging.getLogger("mmjax")

ADVICE = "note: "
"""What begins a line that tells a run's user of something to change; ``mmjax compare`` shows those of its runs."""

HEADLINES = ("rsum", "image_to_text_R@1", "text_to_image_R@1", "acc@1", "macro", "group_score")
"""The metrics of an evaluation that are worth a place on the terminal, by the last part of their keys."""


def log_to_stderr() -> None:
    """Shows what the package's loggers say, one message a line; for commands without a live line."""
    _accept_all_characters(sys.stdout)
    handler = _StderrHandler()
    handler.setFormatter(_Formatter())
    _PACKAGE.handlers = [handler]
    _PACKAGE.propagate = False  # libraries put a handler of their own on the root logger
    _PACKAGE.setLevel(logging.INFO)


def _accept_all_characters(stream: TextIO) -> None:
    """Lets a stream that is not UTF-8 write what it lacks as escapes."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


class _Formatter(logging.Formatter):
    """The message alone; it may quote keys and captions of a stranger's data."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)


class _StderrHandler(logging.StreamHandler):
    """Writes to whatever ``sys.stderr`` is at the time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


class Progress(logging.Handler):
    """One live line on a terminal, or plain lines now and then in a file, with the log messages above it.

    tqdm is no replacement: an evaluation spoils its ETA (8,557 s for 9 s left in a trial of 4.70.1), it writes carriage
    returns into files, and it raises when the disk is full.

    As a context manager it takes the place of the ``mmjax`` logger's other handlers, and leaves the terminal at the
    start of a line however the block ends.
    """

    def __init__(
        self,
        total: int,
        *,
        stream: TextIO | None = None,
        primary: bool = True,
        now: Callable[[], float] = time.monotonic,
        live_seconds: float = 0.1,
        plain_seconds: float = 10.0,
        unit: str = "step",
    ):
        """Args:
        total: The number of steps.
        stream: Where to write; standard output by default.
        primary: Whether to show the line and news. The other processes of a run show warnings alone.
        now: Seconds that only increase.
        live_seconds: The shortest time between two drawings on a terminal.
        plain_seconds: The same for lines in a file.
        unit: What is counted.
        """
        super().__init__(logging.INFO if primary else logging.WARNING)
        self.total, self._unit = total, unit
        self._stream = sys.stdout if stream is None else stream
        _accept_all_characters(self._stream)
        self.setFormatter(_Formatter())
        self._primary = primary
        self._live = self._stream.isatty() and primary
        self._now = now
        self._pause = live_seconds if self._live else plain_seconds
        self._drawn_at = -math.inf
        self._line: Callable[[int | None], str] | None = None
        self._last: tuple[int, float] | None = None
        self._step_seconds: collections.deque[float] = collections.deque(maxlen=64)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """``step`` steps are done; of ``metrics`` (of ``train/``) shows loss, rejected_updates, examples_per_second,
        data_wait, and mfu or else flops_per_second_per_device.

        ``data_wait`` is the fraction, 0 to 1, of the time spent waiting for data.
        """
        if not self._primary:
            return
        now = self._now()
        if self._last is not None and step > self._last[0]:
            self._step_seconds.append((now - self._last[1]) / (step - self._last[0]))
        self._last = (step, now)
        fields = [f"{self._unit} {step:,}/{self.total:,}"]
        if (loss := metrics.get("train/loss")) is not None:
            fields.append(f"loss {loss:.4g}")
        if rejected := metrics.get("train/rejected_updates"):
            fields.append(f"{rejected:,.0f} rejected")
        if (rate := metrics.get("train/examples_per_second")) is not None:
            fields.append(f"{_short(rate)} ex/s")
        if (mfu := metrics.get("train/mfu")) is not None:
            fields.append(f"MFU {mfu:.0%}")
        elif (speed := metrics.get("train/flops_per_second_per_device")) is not None:
            fields.append(f"{_short(speed, ' ')}FLOP/s")
        if step >= self.total:
            fields.append("done")
        elif self._step_seconds:
            # The median: a step that compiles or waits for an evaluation says nothing about those to come.
            fields.append(f"ETA {duration(statistics.median(self._step_seconds) * (self.total - step))}")
        if (wait := metrics.get("train/data_wait")) is not None:
            fields.append(f"data {wait:.0%}")
        progress = step / self.total if self.total else 1.0
        self._line = functools.partial(_fit, fields, progress, unicode=self._unicode())
        if now - self._drawn_at >= self._pause or step >= self.total:
            self._draw(now)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """The results of an evaluation, as a line above the live one; all of them are in ``metrics.jsonl``.

        Of each evaluator those of ``HEADLINES`` are shown, of one without them its first; all if there are none at all.
        """
        by_evaluator: dict[str, list[str]] = {}
        for key in metrics:
            by_evaluator.setdefault(key.rpartition("/")[0], []).append(key)
        headlines = {name: [key for key in keys if _is_headline(key)] for name, keys in by_evaluator.items()}
        shown = [key for name, keys in by_evaluator.items() for key in headlines[name] or keys[:1]]
        values = "  ".join(f"{key} {metrics[key]:.4g}" for key in (shown if any(headlines.values()) else metrics))
        logger.info(f"step {step:,}  {values}")

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a log message above the live line."""
        self._put(("\r\x1b[K" if self._live else "") + self.format(record) + "\n")
        if self._live and self._line is not None:
            self._draw(self._now())

    def close(self) -> None:
        """Leaves the last state of the line standing and the cursor on a fresh one; harmless if repeated."""
        if self._live and self._line is not None:
            self._draw(self._now())
            self._put("\n")
        self._line = None
        super().close()

    def __enter__(self) -> Self:
        self._replaced = _PACKAGE.handlers, _PACKAGE.propagate, _PACKAGE.level
        _PACKAGE.handlers = [self]
        _PACKAGE.propagate = False  # libraries put a handler of their own on the root logger
        _PACKAGE.setLevel(logging.INFO)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        _PACKAGE.handlers, _PACKAGE.propagate, level = self._replaced
        _PACKAGE.setLevel(level)

    def _draw(self, now: float) -> None:
        assert self._line is not None
        self._drawn_at = now
        if self._live:
            # One column is left free: many terminals wrap when the last one is written.
            width = shutil.get_terminal_size().columns - 1
            self._put("\r" + self._line(width) + "\x1b[K")
        else:
            self._put(self._line(None) + "\n")

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError:  # a log on the disk that is full is no reason to stop
            pass

    def _unicode(self) -> bool:
        return (getattr(self._stream, "encoding", None) or "").lower().replace("-", "") == "utf8"


def _is_headline(key: str) -> bool:
    return key.rpartition("/")[2] in HEADLINES


def duration(seconds: float) -> str:
    """Two units at most: 8s, 1m12s, 3h05m, 2d04h."""
    whole = max(0, round(seconds))
    for unit, size, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small:02d}{smaller}"
    return f"{whole}s"


def _short(value: float, space: str = "") -> str:
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{space}{suffix}"
    return f"{value:.3g}{space}"


def _fit(fields: list[str], progress: float, width: int | None, *, unicode: bool) -> str:
    """The fields with a bar after the first where ``width`` has room (None: no bar); else the last ones are cut."""
    text = "  ".join(fields)
    if width is None:
        return text
    room = min(24, width - len(text) - len("  100%  "))
    if room >= 6:
        filled = min(room, round(progress * room))
        bar = ("━" * filled + "╌" * (room - filled)) if unicode else ("#" * filled + "-" * (room - filled))
        return "  ".join([fields[0], f"{bar} {progress:4.0%}", *fields[1:]])
    while len(text) > width and len(fields) > 1:
        fields = fields[:-1]
        text = "  ".join(fields)
    return text[:width]
