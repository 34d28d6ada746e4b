"""``metrics.jsonl`` and TensorBoard events: the metrics of a run on disk."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from mmjax.checkpoints.orbax_errors import NotSaved
from mmjax.runs.jsonl import LineFile, shorten

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


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

    def __init__(self, workdir: str | os.PathLike[str], *, resume_step: int = -1):
        path = Path(workdir) / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _truncate(path, resume_step)
        else:
            path.touch()
        self._lines = LineFile(path)
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


def _truncate(path: Path, last: int) -> None:
    whole = path.read_bytes()
    read = list(_lines(path))
    unreadable = sum(1 for line in whole.splitlines() if line.strip()) - len(read)
    if unreadable > 0:
        logger.warning(f"{path.name}: {unreadable:,} of its lines cannot be read; they are left out")
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
