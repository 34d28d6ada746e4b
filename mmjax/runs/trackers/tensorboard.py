"""TensorBoard events in ``workdir/tensorboard``, written without TensorFlow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from mmjax.runs.trackers.common import base


class Tracker(base.Tracker):
    """Writes events, each at once to disk.

    If the disk is full, the file is closed and a new one begun later, without the events in between.
    """

    def __init__(self, workdir: Path, *, resume_step: int = -1, config: Mapping[str, Any] | None = None):
        self._folder = workdir / "tensorboard"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._events: EventsWriter | None = None
        self._write_event(resume_step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one event with all metrics."""
        values = [Summary.Value(tag=key, simple_value=value) for key, value in metrics.items()]
        self._write_event(step, summary=Summary(value=values))

    def close(self) -> None:
        """Closes the file."""
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()
            self._events = None

    def _write_event(self, step: int, **content: Any) -> None:
        """Writes an event; each file begins with one that makes TensorBoard drop earlier events from ``step`` on."""
        try:
            if self._events is None:
                # SummaryWriter writes in a thread, and its flush does not wait for that. TensorBoard reads files in the
                # order of their names, which must not depend on the system time.
                names = [path.name.partition(".")[0] for path in self._folder.glob("*.tfevents.*")]
                number = max((int(name) for name in names if name.isdigit()), default=0) + 1
                self._events = EventsWriter(str(self._folder / f"{number:06d}.events"))
                start = SessionLog(status=SessionLog.START)
                self._events.write_event(Event(wall_time=time.time(), step=step, session_log=start))
            if content:
                self._events.write_event(Event(wall_time=time.time(), step=step, **content))
            self._events.flush()
        except OSError:
            self.close()
