"""Goodput: the fraction of a run's wall time, over all its starts, that went into steps it kept."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmjax.runs.console import duration
from mmjax.runs.jsonl import JsonlWriter, read_jsonl
from mmjax.runs.timing import ACTIVITIES, Activity, ActivityTimer

FILE = "times.jsonl"
MAX_BREAK_SECONDS = 30 * 86400.0  # a longer break means that the system time was changed

LABELS = {
    "steps": "steps",
    "data": "waiting for data",
    "compiling": "compiling",
    "evaluation": "evaluation",
    "neighbors": "finding similar examples",
    "checkpoint": "saving checkpoints",
    "restoring": "reading checkpoints",
    "lost": "steps lost and done again",
    "other": "start-up and the rest",
}
"""Labels of the activities, and of lost steps, in the order of tables."""


class TimeLog:
    """Appends the time spent by this start of a run to ``times.jsonl``, so that a kill loses one interval only.

    A line has the id of the start, the wall-clock time, the segment of steps (a new one whenever the run resumes from a
    checkpoint), the step that the segment began at, the latest step, and the seconds of each activity so far.

    Args:
      workdir: the run folder.
      timer: the timer of this process.
      writes: whether this process writes; only one of several does.
    """

    def __init__(self, workdir: str | os.PathLike[str], timer: ActivityTimer, *, writes: bool = True):
        self._file = JsonlWriter(Path(workdir) / FILE)
        self._timer = timer
        self._lock = threading.Lock()
        self._id = uuid.uuid4().hex[:12]
        self._segment = 0
        self._first_step: int | None = None
        self._step: int | None = None
        self._writes = writes
        self.write()

    def start_segment(self, step: int) -> None:
        """Starts a segment after ``step``; what was done beyond it is lost."""
        with self._lock:
            self._segment += 1
            self._first_step = self._step = step
        self.write()

    def set_step(self, step: int) -> None:
        """Sets the latest step that is done, for the next line."""
        self._step = step

    def write(self) -> None:
        """Writes a line; a full disk does not end the run (see ``JsonlWriter``)."""
        if not self._writes:
            return
        with self._lock:
            self._file.write({
                "start": self._id, "time": round(time.time(), 3), "segment": self._segment,
                "first_step": self._first_step, "step": self._step,
                "seconds": {name: round(seconds, 4) for name, seconds in self._timer.totals().items()},
            })  # fmt: skip

    def close(self) -> None:
        """Writes the last line."""
        self.write()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goodput:
    """The time spent by all starts of a run.

    Args:
      starts: number of starts.
      seconds: seconds by the keys of ``LABELS``; ``steps`` are those that the run kept.
      between: seconds between the starts; None if the system time was changed.
    """

    starts: int
    seconds: dict[str, float]
    between: float | None

    @property
    def total(self) -> float:
        """Wall time of all starts in seconds."""
        return sum(self.seconds.values())

    @property
    def fraction(self) -> float:
        """Fraction of the wall time that went into steps the run kept."""
        return self.seconds["steps"] / self.total if self.total else 0.0

    def metrics(self) -> dict[str, float]:
        """Returns the metrics ``goodput`` and ``goodput/…``."""
        metrics = {
            "goodput": self.fraction, "goodput/starts": float(self.starts), "goodput/total_seconds": self.total
        }  # fmt: skip
        metrics |= {f"goodput/{name}_seconds": self.seconds[name] for name in LABELS}
        return metrics if self.between is None else metrics | {"goodput/between_starts_seconds": self.between}

    def table(self) -> str:
        """Returns a table of the activities as text."""
        starts = "1 start" if self.starts == 1 else f"{self.starts} starts"
        lines = [f"goodput {self.fraction:.1%}: useful steps in {format_seconds(self.total)} of {starts}"]
        for name, label in LABELS.items():
            if self.seconds[name] > 0:
                fraction = self.seconds[name] / self.total
                lines.append(f"  {label:26}{format_seconds(self.seconds[name]):>8}{fraction:>8.1%}")
        if self.starts > 1:
            between = "unknown: the system time was changed" if self.between is None else format_seconds(self.between)
            lines.append(f"  between starts, not counted: {between}")
        return "\n".join(lines)


def format_seconds(seconds: float) -> str:
    """Formats a duration, with tenths of a second below one minute."""
    return f"{seconds:.1f}s" if seconds < 59.95 else duration(seconds)


def load_goodput(workdir: str | os.PathLike[str]) -> Goodput | None:
    """Returns the goodput of a run folder up to the last line of ``times.jsonl``; None if there is none."""
    seconds = dict.fromkeys(LABELS, 0.0)
    kept: list[_Steps] = []
    starts: dict[str, _Start] = {}
    for line in _lines(Path(workdir) / FILE):
        start = starts.setdefault(line.start, _Start(line))
        if not start.accepts(line):
            continue
        step_seconds = line.seconds["steps"] - start.seconds["steps"]
        if line.segment != start.segment and line.first_step is not None:
            kept, lost = _keep_until(kept, line.first_step)
            seconds["lost"] += lost
            if line.step is not None and line.step > line.first_step:  # earlier lines of the segment are missing
                kept.append(_Steps(line.first_step, line.step, step_seconds))
            else:
                seconds["lost"] += step_seconds  # between the last line and the rewind
        elif line.step is not None:
            kept.append(_Steps(line.step if start.step is None else start.step, line.step, step_seconds))
        start.update(line)
    if not starts:
        return None
    for start in starts.values():
        for activity in ACTIVITIES:
            if activity != "steps":
                seconds[activity] += start.seconds[activity]
    seconds["steps"] = sum(steps.seconds for steps in kept)
    return Goodput(starts=len(starts), seconds=seconds, between=_seconds_between(list(starts.values())))


class _Line(NamedTuple):
    """A line of ``times.jsonl``."""

    start: str
    time: float
    segment: int
    first_step: int | None
    step: int | None
    seconds: dict[Activity, float]


class _Steps(NamedTuple):
    """The steps after ``first`` up to ``last`` and the time they took."""

    first: int
    last: int
    seconds: float


class _Start:
    """One start of the run, up to the lines read so far."""

    def __init__(self, line: _Line):
        self.start_time = line.time - sum(line.seconds.values())
        self.time = line.time
        self.segment = 0
        self.step: int | None = None
        self.seconds: dict[Activity, float] = dict.fromkeys(ACTIVITIES, 0.0)

    def accepts(self, line: _Line) -> bool:
        """Whether the line is consistent: no time decreases, nor the step within a segment."""
        is_later = all(line.seconds[name] >= seconds for name, seconds in self.seconds.items())
        if line.segment != self.segment:
            return is_later and line.segment > self.segment and line.first_step is not None
        return is_later and (self.step is None or (line.step is not None and line.step >= self.step))

    def update(self, line: _Line) -> None:
        self.time, self.segment, self.step, self.seconds = line.time, line.segment, line.step, line.seconds


def _keep_until(kept: list[_Steps], step: int) -> tuple[list[_Steps], float]:
    """Returns the steps that remain when a run goes back to ``step``, and the seconds that are lost."""
    remaining, lost = [], 0.0
    for first, last, seconds in kept:
        fraction = 1.0 if last <= step else 0.0 if first >= step else (step - first) / (last - first)
        if fraction > 0:
            remaining.append(_Steps(first, min(last, step), fraction * seconds))
        lost += (1 - fraction) * seconds
    return remaining, lost


def _seconds_between(starts: list[_Start]) -> float | None:
    total = 0.0
    for before, after in itertools.pairwise(starts):
        gap = after.start_time - before.time
        if not -1.0 <= gap <= MAX_BREAK_SECONDS:
            return None
        total += max(gap, 0.0)
    return total


def _lines(path: Path) -> Iterator[_Line]:
    """Yields the lines that are complete and valid."""
    for _, entry in read_jsonl(path):
        try:
            line = _Line(
                start=str(entry["start"]),
                time=float(entry["time"]),
                segment=int(entry["segment"]),
                first_step=None if entry["first_step"] is None else int(entry["first_step"]),
                step=None if entry["step"] is None else int(entry["step"]),
                seconds={name: float(entry["seconds"].get(name, 0.0)) for name in ACTIVITIES},
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            continue  # of another program
        if math.isfinite(line.time) and all(math.isfinite(s) and s >= 0 for s in line.seconds.values()):
            yield line
