"""What happens around the steps of a run: the interface, evaluation, and checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable

import jax
import numpy as np

from mmjax.checkpoints.manager import Checkpoints
from mmjax.core.state import TrainState
from mmjax.core.types import Metrics
from mmjax.experiment import CheckpointConfig
from mmjax.parallel.preemption import StopRequest
from mmjax.runs.timing import ActivityTimer
from mmjax.train.guard import Diverged, Guard

logger = logging.getLogger(__name__)


class Callback:
    """Base class; a callback overrides what it has a use for. The loop calls all callbacks in the order of its list."""

    def before_step(self, step: int, state: TrainState) -> None:
        """Called before a step is dispatched; ``state`` is what the step starts from."""

    def after_step(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Called when a step is dispatched; ``state`` and ``metrics`` are still being computed on the devices."""

    def finish(self, step: int, state: TrainState) -> None:
        """Called after the last step, or after the step at which the run was asked to stop."""

    def on_divergence(self, step: int, state: TrainState) -> None:
        """Called when a callback has raised Diverged; ``step`` is the last one that was dispatched."""

    def close(self) -> None:
        """Called at the very end, also after an error."""


class Evaluate(Callback):
    """Measures the weights every ``every_steps`` steps and after the last one."""

    def __init__(
        self,
        measure: Callable[[int, TrainState], dict[str, float]],
        *,
        every_steps: int,
        last_step: int,
        flush: Callable[[], None],
    ):
        """``flush`` reads the metrics of all steps so far, so that nothing is measured of a run that diverged."""
        self._measure = measure
        self._every_steps = every_steps
        self._last_step = last_step
        self._flush = flush
        self.metrics: dict[str, float] | None = None
        """What was measured at the current step; None if nothing was."""

    def after_step(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Measures, if it is time to."""
        self.metrics = None
        if step % self._every_steps == 0 or step == self._last_step:
            self._flush()
            self.metrics = self._measure(step, state)


class SaveCheckpoints(Callback):
    """Saves the state every ``every_steps`` steps, when it was measured for the best, at the end, and when stopped.

    After rejected updates a checkpoint bears the number of the last update: a start from there meets the same steps.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        config: CheckpointConfig,
        *,
        guard: Guard,
        evaluate: Evaluate | None,
        stop: StopRequest,
        timer: ActivityTimer,
        last_step: int,
        flush: Callable[[], None],
        before_save: Callable[[], None],
        record: Callable[[str, float], None],
    ):
        """Args:
        checkpoints: Where to save.
        config: When to save.
        guard: Whose rejected updates are not saved as steps.
        evaluate: The evaluation that precedes this callback, for choosing the best checkpoint.
        stop: Whether the run was asked to stop.
        timer: Accounts the time that training waits.
        last_step: The last step of the run.
        flush: Reads the metrics of all steps so far: a step that diverged must not become a checkpoint.
        before_save: Called before a checkpoint that is due.
        record: Takes the seconds of a save under a metric's name.
        """
        self._checkpoints = checkpoints
        self._config = config
        self._guard = guard
        self._evaluate = evaluate
        self._stop = stop
        self._timer = timer
        self._last_step = last_step
        self._flush = flush
        self._before_save = before_save
        self._record = record
        self._saving: tuple[int, float, float] | None = None  # step, start, and how long training was held up
        self._first = True

    def after_step(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Saves, if it is time to, and notices when the last save is on disk."""
        self._notice()
        measured = None if self._evaluate is None else self._evaluate.metrics
        due = step % self._config.every_steps == 0 or step == self._last_step
        if due or (measured is not None and self._config.best is not None):
            self._flush()
            self._before_save()
            self._save(state, step, metrics=measured)

    def finish(self, step: int, state: TrainState) -> None:
        """Saves if the run was stopped between checkpoints, and waits until the last one is on disk."""
        if self._stop.requested and step not in self._checkpoints.steps:
            step = self._save(state, step)
        self._notice()
        saving = f" of step {self._saving[0]}" if self._saving else ""
        with self._timer.measure("checkpoint", f"waiting until the checkpoint{saving} is on disk"):
            self._checkpoints.finish(with_step(state, step), step=step)
        self._done()

    def on_divergence(self, step: int, state: TrainState) -> None:
        """Saves the state of the last update, unless there is none after the last checkpoint."""
        if self._guard.streak:
            with contextlib.suppress(Diverged):
                self._save(state, step)

    def _save(self, state: TrainState, step: int, *, metrics: dict[str, float] | None = None) -> int:
        """Saves the state and returns the step that it is saved as."""
        self._guard.check(step, state.params)
        # A finished run goes on from nowhere, so it keeps its number.
        good = step if step == self._last_step else step - self._guard.streak
        if good < step and good in self._checkpoints.steps:
            return good
        if self._guard.streak:
            metrics = None  # no loss has come of this state yet, so it is no candidate for the best
        self._notice()
        activity = f"saving the checkpoint of step {good}"
        if self._saving is not None:
            activity += f", which waits until that of step {self._saving[0]} is on disk,"
        if good < step:
            state = with_step(state, good)  # not always: to look at the step would wait for the devices
        start = time.monotonic()
        with self._timer.measure("checkpoint", activity):
            self._checkpoints.save(state, step=good, metrics=metrics, losses=self._guard.losses)
        blocked = time.monotonic() - start
        self._done()
        self._saving = good, start, blocked
        self._record("checkpoint_seconds", blocked)
        return good

    def _notice(self) -> None:
        """Checks whether the last save is on disk by now, or cannot be written."""
        self._checkpoints.check()
        if self._saving is not None and not self._checkpoints.saving:
            self._done()

    def _done(self) -> None:
        if self._saving is None:
            return
        step, start, blocked = self._saving
        seconds = time.monotonic() - start
        self._saving = None
        if step not in self._checkpoints.steps:  # it could not be written, which has been logged
            return
        self._record("checkpoint_disk_seconds", seconds)
        if self._first:
            self._first = False
            logger.info(
                f"the checkpoint of step {step} held training up for {blocked:.1f} s, on disk after {seconds:.1f} s"
            )


def with_step(state: TrainState, step: int) -> TrainState:
    """The state with the number of an earlier step, since which nothing else in it has changed."""
    with jax.transfer_guard("allow"):
        if int(state.step) == step:
            return state
        number = np.asarray(step, np.int32)
        return dataclasses.replace(state, step=jax.make_array_from_callback((), state.step.sharding, lambda _: number))
