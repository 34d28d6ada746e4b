"""Measures a process's wall time by activity, and warns when an activity lasts too long."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, get_args

from mmjax.core.stuck_processes import stuck_workers

logger = logging.getLogger(__name__)

Activity = Literal["steps", "data", "compiling", "evaluation", "neighbors", "checkpoint", "restoring", "other"]
ACTIVITIES: tuple[Activity, ...] = get_args(Activity)

WARN_AFTER_SECONDS: dict[Activity, float] = {
    "data": 10.0,
    "checkpoint": 10.0,
    "restoring": 10.0,
    "steps": 60.0,
    "compiling": 600.0,
    "evaluation": 600.0,
    "neighbors": 600.0,
    "other": math.inf,
}
"""Seconds until the first warning about an activity; each further one comes after twice the time."""

SLOW_STEP_FACTOR = 10.0  # warn about a step that takes this many times as long as the longest one so far
WARNINGS: dict[Activity, str] = {
    "data": "waiting for data for {seconds:.0f} s; `mmjax data bench` shows which stage of the pipeline is slow",
    "checkpoint": "{description} has taken {seconds:.0f} s; the checkpoints' file system is slow, full or unreachable",
    "restoring": "{description} has taken {seconds:.0f} s; the checkpoints' file system is slow or unreachable",
    "steps": "a step has taken {seconds:.0f} s; the device hangs, or another process waits; see its output",
    "compiling": "{description} has taken {seconds:.0f} s; model.scan=True compiles a stack of layers as one",
    "evaluation": "{description} has taken {seconds:.0f} s; it depends on eval.tasks and the size of eval.split",
    "neighbors": "{description} has taken {seconds:.0f} s; it reads and embeds all training examples",
}
_POLL_SECONDS = 0.5
_TICK_SECONDS = 60.0


class _Entry(NamedTuple):
    activity: Activity
    description: str


class ActivityTimer:
    """Measures the wall time of the main thread; every second belongs to the innermost current activity.

    It starts when it is created. It uses a monotonic clock, so changes of the system time have no effect.

    Example:
        >>> timer = ActivityTimer()
        >>> with timer.measure("data"):
        ...     batch = next(iter([0]))
        >>> timer.seconds("data") < 1
        True
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._lock = threading.Lock()
        self._stack = [_Entry("other", "")]
        self._since = now()  # when the current activity began
        self._changes = 0
        self._totals = dict.fromkeys(ACTIVITIES, 0.0)
        self._longest = dict.fromkeys(ACTIVITIES, 0.0)

    @contextlib.contextmanager
    def measure(
        self, activity: Activity, description: str = "", *, hidden: Callable[[], bool] = lambda: False
    ) -> Iterator[None]:
        """Attributes the time of the block to ``activity``, except for that of nested blocks.

        Args:
          activity: what the block does.
          description: the subject of warnings, such as ``saving the checkpoint of step 500``.
          hidden: called at the end of the block; if it returns True, because the devices were busy all the time, the
            time belongs to the enclosing activity.
        """
        with self._lock:
            self._settle()
            self._stack.append(_Entry(activity, description or activity))
        try:
            yield
        finally:
            with self._lock:
                if hidden():
                    self._stack[-1] = self._stack[-2]
                self._settle()
                self._stack.pop()

    def seconds(self, activity: Activity) -> float:
        """Returns the seconds spent on an activity so far."""
        return self.totals()[activity]

    def totals(self) -> dict[Activity, float]:
        """Returns the seconds by activity so far; their sum is the age of the timer."""
        with self._lock:
            activity = self._stack[-1].activity
            return self._totals | {activity: self._totals[activity] + self._now() - self._since}

    @contextlib.contextmanager
    def watchdog(
        self,
        *,
        tick: Callable[[], None] | None = None,
        every: float = _TICK_SECONDS,
        patience: float = 1.0,
    ) -> Iterator[None]:
        """Starts a thread that warns about activities that last too long, such as a stalled file system.

        Args:
          tick: called from the thread at regular intervals.
          every: interval of ``tick`` in seconds.
          patience: factor on ``WARN_AFTER_SECONDS``.
        """
        closed = threading.Event()
        watch = threading.Thread(
            target=self._watch, args=(closed, tick, every, patience), name="mmjax-watchdog", daemon=True
        )
        watch.start()
        try:
            yield
        finally:
            closed.set()
            watch.join()

    def _settle(self) -> None:
        """Adds the elapsed time to the current activity."""
        now = self._now()
        activity, elapsed = self._stack[-1].activity, now - self._since
        self._totals[activity] += elapsed
        self._longest[activity] = max(self._longest[activity], elapsed)
        self._since = now
        self._changes += 1

    def _watch(
        self,
        closed: threading.Event,
        tick: Callable[[], None] | None,
        every: float,
        patience: float,
    ) -> None:
        seen, due, ticked = -1, math.inf, self._now()
        while not closed.wait(_POLL_SECONDS * min(patience, 1.0)):
            with self._lock:
                changes, entry, since = self._changes, self._stack[-1], self._since
                longest = self._longest[entry.activity]
            if changes != seen:
                seen, due = changes, patience * WARN_AFTER_SECONDS[entry.activity]
                if entry.activity == "steps":
                    due = max(due, SLOW_STEP_FACTOR * longest)
            elapsed = self._now() - since
            if elapsed >= due:
                text = WARNINGS[entry.activity].format(description=entry.description, seconds=elapsed)
                if entry.activity == "data" and (stuck := stuck_workers()):
                    text = f"waiting for data for {elapsed:.0f} s; {'; '.join(stuck)}"
                logger.warning(text)
                due *= 2
            if tick is not None and self._now() - ticked >= every:
                ticked = self._now()
                tick()
