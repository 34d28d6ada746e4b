"""Where a process's wall time goes, by activity, and a word on the terminal when one of them lasts too long."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, get_args

logger = logging.getLogger(__name__)

Activity = Literal["steps", "data", "compiling", "evaluation", "checkpoint", "restoring", "other"]
ACTIVITIES: tuple[Activity, ...] = get_args(Activity)

PATIENCE: dict[Activity, float] = {
    "data": 10.0,
    "checkpoint": 10.0,
    "restoring": 10.0,
    "steps": 60.0,
    "compiling": 600.0,
    "evaluation": 600.0,
    "other": math.inf,
}
"""Seconds before the first word about an activity; the next ones come after twice as long each."""

SLOW_STEP = 10.0  # a step that takes so many times the longest before it is worth a word
WORDS: dict[Activity, str] = {
    "data": "waiting for data for {seconds:.0f} s; `mmjax data bench` tells which part of the pipeline is slow",
    "checkpoint": "{what} has taken {seconds:.0f} s; the file system of the checkpoints is slow, full or away",
    "restoring": "{what} has taken {seconds:.0f} s; the file system of the checkpoints is slow or away",
    "steps": "a step has taken {seconds:.0f} s; the device hangs, or one of several processes holds up all: "
    "its own output says why",
    "compiling": "{what} has taken {seconds:.0f} s; model.scan=True compiles a stack of layers as one",
    "evaluation": "{what} has taken {seconds:.0f} s; eval.tasks and the size of eval.split decide how long",
}
_LOOK = 0.5
_TICK = 60.0


class _Entry(NamedTuple):
    activity: Activity
    what: str


class Clock:
    """Accounts the main thread's wall time to activities: every second to exactly one, the innermost.

    It counts from its making. Only differences of a monotonic clock enter, so that setting the machine's time changes
    nothing.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._lock = threading.Lock()
        self._stack = [_Entry("other", "")]
        self._since = now()  # when the innermost activity became it
        self._changes = 0
        self._spent = dict.fromkeys(ACTIVITIES, 0.0)
        self._longest = dict.fromkeys(ACTIVITIES, 0.0)

    @contextlib.contextmanager
    def during(
        self, activity: Activity, what: str = "", *, hidden: Callable[[], bool] = lambda: False
    ) -> Iterator[None]:
        """The block's time is that of ``activity``, save what is spent in blocks within it; ``what`` is for people.

        Where at its end the devices are still at work it cost no time: then it is ``hidden``, and the activity around
        it counts.
        """
        with self._lock:
            self._settle()
            self._stack.append(_Entry(activity, what or activity))
        try:
            yield
        finally:
            with self._lock:
                if hidden():
                    self._stack[-1] = self._stack[-2]
                self._settle()
                self._stack.pop()

    def seconds(self, activity: Activity) -> float:
        """Spent on it so far."""
        return self.spent()[activity]

    def spent(self) -> dict[Activity, float]:
        """Seconds by activity up to now; their sum is the clock's age."""
        with self._lock:
            activity = self._stack[-1].activity
            return self._spent | {activity: self._spent[activity] + self._now() - self._since}

    @contextlib.contextmanager
    def watched(
        self,
        *,
        tick: Callable[[], None] | None = None,
        every: float = _TICK,
        patience: float = 1.0,
    ) -> Iterator[None]:
        """Logs a warning while something lasts too long, and calls ``tick`` now and then, both from a thread.

        A stalled file system or a worker without memory would otherwise look like a slow step. ``patience`` scales
        all of ``PATIENCE``.
        """
        closed = threading.Event()
        watch = threading.Thread(
            target=self._watch, args=(closed, tick, every, patience), name="mmjax-clock", daemon=True
        )
        watch.start()
        try:
            yield
        finally:
            closed.set()
            watch.join()

    def _settle(self) -> None:
        """Charges what has passed to the innermost activity, and begins anew."""
        now = self._now()
        activity, passed = self._stack[-1].activity, now - self._since
        self._spent[activity] += passed
        self._longest[activity] = max(self._longest[activity], passed)
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
        while not closed.wait(_LOOK * min(patience, 1.0)):
            with self._lock:
                changes, entry, since = self._changes, self._stack[-1], self._since
                longest = self._longest[entry.activity]
            if changes != seen:
                seen, due = changes, patience * PATIENCE[entry.activity]
                if entry.activity == "steps":
                    due = max(due, SLOW_STEP * longest)
            lasted = self._now() - since
            if lasted >= due:
                logger.warning(WORDS[entry.activity].format(what=entry.what, seconds=lasted))
                due *= 2
            if tick is not None and self._now() - ticked >= every:
                ticked = self._now()
                tick()
