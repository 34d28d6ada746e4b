"""Goodput: the share of the wall time of all starts of a run that went into steps which the run has kept."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmjax.runs.console import duration
from mmjax.runs.jsonl import LineFile
from mmjax.runs.timing import ACTIVITIES, Activity, Clock

FILE = "times.jsonl"
LONGEST_BREAK = 30 * 86400.0  # a longer one is a clock that was set

NAMES = {
    "steps": "steps",
    "data": "waiting for data",
    "compiling": "compiling",
    "evaluation": "evaluation",
    "checkpoint": "saving checkpoints",
    "restoring": "reading checkpoints",
    "lost": "steps lost and done again",
    "other": "start-up and the rest",
}
"""The activities, and what was lost of the steps, in the words and the order of a table."""


class Ledger:
    """Appends to ``times.jsonl`` what this start of a run has spent so far, so that a kill loses one interval.

    A line: which start, the wall clock, the stretch of steps (a new one for each checkpoint that it goes on from),
    the step that the stretch began from, the last step read, and the seconds of each activity since the start began.
    """

    def __init__(self, workdir: str | os.PathLike[str], clock: Clock, *, writes: bool = True):
        """Of several processes one ``writes``."""
        self._file = LineFile(Path(workdir) / FILE)
        self._clock = clock
        self._lock = threading.Lock()
        self._id = uuid.uuid4().hex[:12]
        self._stretch = 0
        self._began: int | None = None
        self._step: int | None = None
        self._writes = writes
        self.write()

    def go_on(self, step: int) -> None:
        """Steps are taken from here: what was done beyond is lost."""
        with self._lock:
            self._stretch += 1
            self._began = self._step = step
        self.write()

    def reached(self, step: int) -> None:
        """This step is done; the next line says so."""
        self._step = step

    def write(self) -> None:
        """One line; a disk that takes none ends no run (see ``LineFile``)."""
        if not self._writes:
            return
        with self._lock:
            line = {
                "start": self._id, "at": round(time.time(), 3), "stretch": self._stretch, "from": self._began,
                "step": self._step, "seconds": {k: round(v, 4) for k, v in self._clock.spent().items()},
            }  # fmt: skip
            self._file.write(json.dumps(line))

    def close(self) -> None:
        """The last line."""
        self.write()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goodput:
    """What all starts of a run have spent: ``seconds`` by the names of ``NAMES``, ``steps`` being those kept."""

    starts: int
    seconds: dict[str, float]
    between: float | None  # seconds from the last line of one start to the next one; None where clocks contradict

    @property
    def total(self) -> float:
        """Wall time of all starts together."""
        return sum(self.seconds.values())

    @property
    def share(self) -> float:
        """Useful steps' share of it."""
        return self.seconds["steps"] / self.total if self.total else 0.0

    def metrics(self) -> dict[str, float]:
        """``goodput`` and what it comes from, for ``metrics.jsonl``."""
        found = {"goodput": self.share, "goodput/starts": float(self.starts), "goodput/total_seconds": self.total}
        found |= {f"goodput/{name}_seconds": self.seconds[name] for name in NAMES}
        return found if self.between is None else found | {"goodput/between_starts_seconds": self.between}

    def table(self) -> str:
        """For the terminal."""
        starts = "1 start" if self.starts == 1 else f"{self.starts} starts"
        lines = [f"goodput {self.share:.1%}: useful steps in {span(self.total)} of {starts}"]
        for name, words in NAMES.items():
            if self.seconds[name] > 0:
                share = self.seconds[name] / self.total
                lines.append(f"  {words:26}{span(self.seconds[name]):>8}{share:>8.1%}")
        if self.starts > 1:
            between = "unknown: a clock was set" if self.between is None else span(self.between)
            lines.append(f"  between starts, not counted: {between}")
        return "\n".join(lines)


def span(seconds: float) -> str:
    """A time for people, with tenths where they matter."""
    return f"{seconds:.1f}s" if seconds < 59.95 else duration(seconds)


def of_run(workdir: str | os.PathLike[str]) -> Goodput | None:
    """The goodput of a run folder up to its last line; None where nothing is known."""
    seconds = dict.fromkeys(NAMES, 0.0)
    kept: list[_Steps] = []
    starts: dict[str, _Start] = {}
    for line in _lines(Path(workdir) / FILE):
        start = starts.setdefault(line.start, _Start(line))
        if not start.follows(line):
            continue
        took = line.seconds["steps"] - start.spent["steps"]
        if line.stretch != start.stretch and line.began is not None:
            kept, lost = _until(kept, line.began)
            seconds["lost"] += lost
            if line.step is not None and line.step > line.began:  # the stretch's first lines are not there
                kept.append(_Steps(line.began, line.step, took))
            else:
                seconds["lost"] += took  # after the last line before going back
        elif line.step is not None:
            kept.append(_Steps(line.step if start.step is None else start.step, line.step, took))
        start.take(line)
    if not starts:
        return None
    for start in starts.values():
        for activity in ACTIVITIES:
            if activity != "steps":
                seconds[activity] += start.spent[activity]
    seconds["steps"] = sum(steps.seconds for steps in kept)
    return Goodput(starts=len(starts), seconds=seconds, between=_between(list(starts.values())))


class _Line(NamedTuple):
    """What ``Ledger`` writes."""

    start: str
    at: float
    stretch: int
    began: int | None
    step: int | None
    seconds: dict[Activity, float]


class _Steps(NamedTuple):
    """The steps after ``first`` up to ``last``, and the time they took."""

    first: int
    last: int
    seconds: float


class _Start:
    """What the lines of one start have said so far."""

    def __init__(self, first: _Line):
        self.began = first.at - sum(first.seconds.values())
        self.at = first.at
        self.stretch = 0
        self.step: int | None = None
        self.spent: dict[Activity, float] = dict.fromkeys(ACTIVITIES, 0.0)

    def follows(self, line: _Line) -> bool:
        """Whether the line can come after the others: no time runs backwards, nor steps within a stretch."""
        later = all(line.seconds[name] >= spent for name, spent in self.spent.items())
        if line.stretch != self.stretch:
            return later and line.stretch > self.stretch and line.began is not None
        return later and (self.step is None or (line.step is not None and line.step >= self.step))

    def take(self, line: _Line) -> None:
        self.at, self.stretch, self.step, self.spent = line.at, line.stretch, line.step, line.seconds


def _until(kept: list[_Steps], step: int) -> tuple[list[_Steps], float]:
    """What stays of the steps when a run goes back to ``step``, and the seconds that are lost."""
    stays, lost = [], 0.0
    for first, last, seconds in kept:
        share = 1.0 if last <= step else 0.0 if first >= step else (step - first) / (last - first)
        if share > 0:
            stays.append(_Steps(first, min(last, step), share * seconds))
        lost += (1 - share) * seconds
    return stays, lost


def _between(starts: list[_Start]) -> float | None:
    total = 0.0
    for before, after in itertools.pairwise(starts):
        gap = after.began - before.at
        if not -1.0 <= gap <= LONGEST_BREAK:
            return None
        total += max(gap, 0.0)
    return total


def _lines(path: Path) -> Iterator[_Line]:
    """The lines that can be read and make sense."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for words in text.splitlines():
        try:
            raw = json.loads(words)
            line = _Line(
                start=str(raw["start"]),
                at=float(raw["at"]),
                stretch=int(raw["stretch"]),
                began=None if raw["from"] is None else int(raw["from"]),
                step=None if raw["step"] is None else int(raw["step"]),
                seconds={name: float(raw["seconds"].get(name, 0.0)) for name in ACTIVITIES},
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            continue  # torn by a kill, or not ours
        if math.isfinite(line.at) and all(math.isfinite(value) and value >= 0 for value in line.seconds.values()):
            yield line
