"""What a run says while it runs: ``metrics.jsonl`` and TensorBoard events on disk, one live line on the terminal."""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from mmjax.checkpoints.orbax_errors import NotSaved
from mmjax.runs.jsonl import LineFile, shorten

METRICS_FILE = "metrics.jsonl"

HEADLINES = ("rsum", "image_to_text_R@1", "text_to_image_R@1", "acc@1", "macro", "group_score")
"""The metrics of an evaluation that are worth a place on the terminal, by the last part of their keys."""


class MetricsWriter(contextlib.AbstractContextManager):
    """Appends scalars to ``workdir/metrics.jsonl`` and to TensorBoard events in ``workdir/tensorboard``.

    A line is one JSON object: ``step`` and slash-keys. What is not finite is written as the strings ``"NaN"``,
    ``"Infinity"`` and ``"-Infinity"`` (JSON has no such numbers; Python's ``float`` and protobuf read them).

    ``resume_step`` is the step of the checkpoint that the run goes on from; lines of later steps belong to work that
    was lost and will be done again, so they are dropped, as is what cannot be read. Without a checkpoint (-1) all
    earlier lines are.

    A disk that takes no lines is no reason to stop: see ``LineFile``. TensorBoard's file is then ended and another
    begun; it lacks what was measured in between.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, resume_step: int = -1, say: Callable[[str], None] = print):
        path = Path(workdir) / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _truncate(path, resume_step, say=say)
        else:
            path.touch()
        self._lines = LineFile(path, say=say)
        self._folder = path.parent / "tensorboard"
        self._folder.mkdir(exist_ok=True)
        self._events: EventsWriter | None = None
        self._closed = False
        self._event(resume_step + 1)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line, which outlives the process once this returns; values may be anything that ``float`` takes."""
        if self._closed:
            raise ValueError(f"{METRICS_FILE} is closed")
        values = {key: float(value) for key, value in metrics.items()}
        if "step" in values:
            raise ValueError("a metric is named 'step', which is the key of the step itself; give it another name")
        line = {"step": int(step)} | {key: _encode(value) for key, value in values.items()}
        self._lines.write(json.dumps(line, allow_nan=False))
        entries = [Summary.Value(tag=key, simple_value=value) for key, value in values.items()]
        self._event(int(step), summary=Summary(value=entries))

    def finish(self) -> None:
        """Raises NotSaved where lines are still waiting for a disk that takes them."""
        if not self._lines.flush():
            raise NotSaved(
                f"{METRICS_FILE} could not be written ({self._lines.trouble}); make room and run the same command again"
            )

    def close(self) -> None:
        """Ends TensorBoard's file; further writes fail."""
        self._closed = True
        self._lines.flush()
        self._end_events()

    def _event(self, step: int, **content: Any) -> None:
        """An event; before the first of a file, what makes TensorBoard forget that step and later ones: lost work."""
        try:
            if self._events is None:
                # Not SummaryWriter: it hands events to a thread through a pipe, and its flush does not wait for either.
                # TensorBoard reads the files in the order of their names, which must not be that of a clock.
                names = [path.name.partition(".")[0] for path in self._folder.glob("*.tfevents.*")]
                number = max((int(name) for name in names if name.isdigit()), default=0) + 1
                self._events = EventsWriter(str(self._folder / f"{number:06d}.events"))
                start = SessionLog(status=SessionLog.START)
                self._events.write_event(Event(wall_time=time.time(), step=step, session_log=start))
            if content:
                self._events.write_event(Event(wall_time=time.time(), step=step, **content))
            self._events.flush()
        except OSError:
            self._end_events()

    def _end_events(self) -> None:
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()
            self._events = None

    def __exit__(self, *_: object) -> None:
        self.close()


class NoMetrics:
    """What the other processes of a run have in place of a ``MetricsWriter``: the first one writes for all."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl`` in order, with whatever cannot be read left out; empty if there is no file."""
    path = Path(workdir) / METRICS_FILE
    return [metrics for _, metrics in _lines(path)] if path.exists() else []


def _truncate(path: Path, last: int, *, say: Callable[[str], None]) -> None:
    whole = path.read_bytes()
    read = list(_lines(path))
    unreadable = sum(1 for line in whole.splitlines() if line.strip()) - len(read)
    if unreadable > 0:
        say(f"{path.name}: {unreadable:,} of its lines cannot be read; they are left out")
    shorten(path, "".join(text + "\n" for text, metrics in read if metrics["step"] <= last).encode())


def _lines(path: Path) -> Iterator[tuple[str, dict[str, float]]]:
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            yield text, {"step": int(line["step"])} | {k: float(v) for k, v in line.items() if k != "step"}
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            continue  # torn by a kill, or not ours


def _encode(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


class Progress:
    """One live line on a terminal, plain lines now and then where output goes to a file.

    Use it as a context manager: however the block ends, the terminal's next line starts clean.
    """

    def __init__(
        self,
        total: int,
        *,
        stream: TextIO | None = None,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
        live_seconds: float = 0.1,
        plain_seconds: float = 10.0,
    ):
        """``total`` steps; the line is drawn at most every ``live_seconds``, or ``plain_seconds`` in a file.

        Where it is ``quiet`` only warnings are shown: of several processes one speaks for all.
        """
        self.total = total
        self._stream = sys.stdout if stream is None else stream
        self._quiet = quiet
        self._live = self._stream.isatty() and not quiet
        self._clock = clock
        self._pause = live_seconds if self._live else plain_seconds
        self._drawn_at = -math.inf
        self._line: Callable[[int | None], str] | None = None
        self._last: tuple[int, float] | None = None
        self._step_seconds: collections.deque[float] = collections.deque(maxlen=64)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """``step`` steps are done; of ``metrics`` (of ``train/``) shows loss, skipped_updates, examples_per_second,
        data_wait, and mfu or else flops_per_second_per_device.

        ``data_wait`` is the share, 0 to 1, of the time spent waiting for data.
        """
        if self._quiet:
            return
        now = self._clock()
        if self._last is not None and step > self._last[0]:
            self._step_seconds.append((now - self._last[1]) / (step - self._last[0]))
        self._last = (step, now)
        parts = [f"step {step:,}/{self.total:,}"]
        if (loss := metrics.get("train/loss")) is not None:
            parts.append(f"loss {loss:.4g}")
        if skipped := metrics.get("train/skipped_updates"):
            parts.append(f"{skipped:,.0f} skipped")
        if (rate := metrics.get("train/examples_per_second")) is not None:
            parts.append(f"{_short(rate)} ex/s")
        if (mfu := metrics.get("train/mfu")) is not None:
            parts.append(f"MFU {mfu:.0%}")
        elif (speed := metrics.get("train/flops_per_second_per_device")) is not None:
            parts.append(f"{_short(speed, ' ')}FLOP/s")
        if step >= self.total:
            parts.append("done")
        elif self._step_seconds:
            # The median: a step that compiles or waits for an evaluation says nothing about those to come.
            parts.append(f"ETA {duration(statistics.median(self._step_seconds) * (self.total - step))}")
        if (wait := metrics.get("train/data_wait")) is not None:
            parts.append(f"data {wait:.0%}")
        share = step / self.total if self.total else 1.0
        self._line = functools.partial(_fit, parts, share, unicode=self._unicode())
        if now - self._drawn_at >= self._pause or step >= self.total:
            self._draw(now)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """The results of an evaluation, as a line above the live one; all of them are in ``metrics.jsonl``."""
        shown = {key: value for key, value in metrics.items() if key.rsplit("/", 1)[-1] in HEADLINES}
        values = "  ".join(f"{key} {value:.4g}" for key, value in (shown or metrics).items())
        self.note(f"step {step:,}  {values}")

    def note(self, text: str) -> None:
        """``text`` as lines of their own, above the live one."""
        if not self._quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """The same, said by every process: what is true of one of them alone."""
        self._put(("\r\x1b[K" if self._live else "") + text + "\n")
        if self._live and self._line is not None:
            self._draw(self._clock())

    def close(self) -> None:
        """Leaves the last state of the line standing and the cursor on a fresh one; harmless if repeated."""
        if self._live and self._line is not None:
            self._draw(self._clock())
            self._put("\n")
        self._line = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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


def _fit(parts: list[str], share: float, width: int | None, *, unicode: bool) -> str:
    """The parts with a bar after the first where ``width`` has room (None: no bar); else the last ones are cut."""
    text = "  ".join(parts)
    if width is None:
        return text
    room = min(24, width - len(text) - len("  100%  "))
    if room >= 6:
        filled = min(room, round(share * room))
        bar = ("━" * filled + "╌" * (room - filled)) if unicode else ("#" * filled + "-" * (room - filled))
        return "  ".join([parts[0], f"{bar} {share:4.0%}", *parts[1:]])
    while len(text) > width and len(parts) > 1:
        parts = parts[:-1]
        text = "  ".join(parts)
    return text[:width]
