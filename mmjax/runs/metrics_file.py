"""Writes metrics to ``metrics.jsonl`` and hands them to trackers, and reads them."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.checkpoints.orbax_errors import CheckpointNotSaved
from mmjax.runs.jsonl import JsonlWriter, read_jsonl, replace_content
from mmjax.runs.trackers.common.base import Tracker

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class MetricsWriter(contextlib.AbstractContextManager):
    """Appends scalars to ``workdir/metrics.jsonl`` and hands them to trackers.

    A line is a JSON object of ``step`` and metrics by slash-separated names. Non-finite values are written as the
    strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, which JSON lacks as numbers and Python's ``float`` parses.

    A full disk does not end the run: lines wait in memory (see ``JsonlWriter``).

    Args:
      workdir: the run folder.
      resume_step: step of the checkpoint that the run resumes from; lines of later steps, which will run again, and
        unreadable lines are removed. -1 removes all lines.
      trackers: receive the metrics too; closed with the writer.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, resume_step: int = -1, trackers: Sequence[Tracker] = ()):
        path = Path(workdir) / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _truncate(path, resume_step)
        else:
            path.touch()
        self._lines = JsonlWriter(path)
        self._trackers = trackers
        self._closed = False

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line, which then survives a kill; values may be anything that ``float`` accepts."""
        if self._closed:
            raise ValueError(f"{METRICS_FILE} is closed")
        values = {key: float(value) for key, value in metrics.items()}
        if "step" in values:
            raise ValueError("a metric is named 'step', which is the key of the step itself; give it another name")
        self._lines.write({"step": int(step)} | {key: _encode(value) for key, value in values.items()})
        for tracker in self._trackers:
            tracker.write(int(step), values)

    def finish(self) -> None:
        """Raises CheckpointNotSaved if lines are still pending because the disk is full."""
        if not self._lines.flush():
            raise CheckpointNotSaved(
                f"{METRICS_FILE} could not be written ({self._lines.failure}); make room and run the same command again"
            )

    def close(self) -> None:
        """Closes the trackers; later writes raise."""
        if self._closed:
            return
        self._closed = True
        self._lines.flush()
        for tracker in self._trackers:
            tracker.close()

    def __exit__(self, *_: object) -> None:
        self.close()


class NoMetrics:
    """The ``MetricsWriter`` of all processes but the first, which writes for all."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Does nothing."""

    def finish(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Returns the readable lines of ``metrics.jsonl`` in order; empty if there is no file."""
    return [metrics for _, metrics in _lines(Path(workdir) / METRICS_FILE)]


def _truncate(path: Path, last_step: int) -> None:
    lines = list(_lines(path))
    unreadable = sum(1 for line in path.read_bytes().splitlines() if line.strip()) - len(lines)
    if unreadable > 0:
        logger.warning(f"{path.name}: {unreadable:,} of its lines cannot be read; they are removed")
    kept = "".join(text + "\n" for text, metrics in lines if metrics["step"] <= last_step)
    replace_content(path, kept.encode())


def _lines(path: Path) -> Iterator[tuple[str, dict[str, float]]]:
    for text, line in read_jsonl(path):
        with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError):  # truncated, or of another program
            yield text, {"step": int(line["step"])} | {k: float(v) for k, v in line.items() if k != "step"}


def _encode(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
