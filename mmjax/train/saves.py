"""Saving checkpoints on the clock: what it holds training up, and when each is on disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from mmjax.checkpoints.manager import Checkpoints
from mmjax.core.state import TrainState
from mmjax.runs.timing import ActivityTimer

logger = logging.getLogger(__name__)


class Saves:
    """Starts saves, and tells how long each took: ``tell(name, seconds)``."""

    def __init__(self, checkpoints: Checkpoints, clock: ActivityTimer):
        self._checkpoints = checkpoints
        self._clock = clock
        self._begun: tuple[int, float, float] | None = None  # step, when, and how long training was held up
        self._first = True
        self.tell: Callable[[str, float], None] = lambda name, seconds: None

    def save(
        self,
        state: TrainState,
        *,
        step: int,
        metrics: dict[str, float] | None = None,
        losses: Sequence[float] | None = None,
    ) -> None:
        """As ``Checkpoints.save``; a save before that is not yet on disk is waited for."""
        self.look()
        what = f"saving the checkpoint of step {step}"
        if self._begun is not None:
            what += f", which waits until that of step {self._begun[0]} is on disk,"
        began = time.monotonic()
        with self._clock.measure("checkpoint", what):
            self._checkpoints.save(state, step=step, metrics=metrics, losses=losses)
        held = time.monotonic() - began
        self._done()
        self._begun = step, began, held
        self.tell("checkpoint_seconds", held)

    def look(self) -> None:
        """Whether the last one is on disk by now, or cannot be written; to be asked after every step."""
        self._checkpoints.check()
        if self._begun is not None and not self._checkpoints.saving:
            self._done()

    def finish(self, state: TrainState, *, step: int) -> None:
        """As ``Checkpoints.finish``."""
        self.look()
        what = "waiting until the checkpoint" + (f" of step {self._begun[0]}" if self._begun else "") + " is on disk"
        with self._clock.measure("checkpoint", what):
            self._checkpoints.finish(state, step=step)
        self._done()

    def _done(self) -> None:
        if self._begun is None:
            return
        step, began, held = self._begun
        seconds = time.monotonic() - began
        self._begun = None
        if step not in self._checkpoints.steps:  # it could not be written, which has been said
            return
        self.tell("checkpoint_disk_seconds", seconds)
        if self._first:
            self._first = False
            logger.info(
                f"the checkpoint of step {step} held training up for {held:.1f} s, on disk after {seconds:.1f} s"
            )
