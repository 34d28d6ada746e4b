"""Saves and restores checkpoints: asynchronous, atomic, verified when read; keeps the latest few and the best one."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mmjax.checkpoints import checksums, location, orbax_errors, replica_slices
from mmjax.checkpoints.orbax_errors import CheckpointNotSaved, DamagedCheckpoint, explain
from mmjax.checkpoints.preservation import LatestAndBest
from mmjax.checkpoints.reader import MANIFEST, CheckpointReader, check_memory
from mmjax.core.config import ConfigError
from mmjax.core.files import find_irregular
from mmjax.core.state import AugmentState, Params, TrainState, flatten
from mmjax.parallel import collectives

StepSelector = int | Literal["last", "best"]
T = TypeVar("T")

logger = logging.getLogger(__name__)
_UNFINISHED = ".orbax-checkpoint-tmp"


class Checkpoints:
    """The checkpoints of one run.

    ``params``, each moving average, the state of each augmentation, that of the objective and that of the gate are
    separate items, so that evaluation and export read no more than they need. A manifest holds checksums of all arrays.

    With one process a failed save does not end the run: a warning is logged, partial files are removed, and the next
    ``save`` tries again. With several processes the failing one raises ``CheckpointNotSaved``, because the others
    cannot know.

    Args:
      workdir: the run folder.
      directory: ``CheckpointConfig.directory``.
      keep: number of latest checkpoints to keep.
      best: metric whose highest value marks the best checkpoint, which is kept as well.
      read_only: never save or delete anything.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        directory: str | None = None,
        keep: int = 1,
        best: str | None = None,
        read_only: bool = False,
    ):
        self._keep = keep
        self._best = best
        self._read_only = read_only
        self._directory = location.resolve_directory(workdir, directory)
        self._description = location.describe(workdir, directory)
        if read_only and not self._directory.is_dir():
            raise ConfigError(f"{self._description}: holds no checkpoints; train there first")
        if (path := find_irregular(self._directory)) is not None:
            raise ConfigError(f"{self._description}: {path} is not a regular file; remove it")
        orbax_errors.filter_orbax_logs()
        if not read_only:
            replica_slices.save_small_arrays_whole()
        self._saving: int | None = None  # the step of the save in progress
        self._failure = ""
        self._manifest: dict[str, Any] = {}  # metrics and losses of the last save
        self._open()

    def _open(self) -> None:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=LatestAndBest(self._keep, self._best_step),
            cleanup_tmp_directories=not self._read_only,
            read_only=self._read_only,
        )
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except Exception as error:  # Orbax raises all kinds of errors on damaged files
            raise ConfigError(f"{self._directory}: cannot be opened ({explain(error)}); move it away") from error
        self._stale = False
        self._scores: dict[int, float] = {}
        for step in self.steps if self._best is not None else ():
            try:
                metrics = self._reader(step).read_manifest()["metrics"] or {}
            except DamagedCheckpoint as error:
                if not location.is_deleted(self._folder(step)):
                    logger.warning(f"the metrics of the checkpoint of step {step} cannot be read ({error.cause})")
                continue
            if self._best in metrics:
                self._scores[step] = float(metrics[self._best])

    @property
    def steps(self) -> list[int]:
        """Steps of finished checkpoints, in ascending order."""
        return sorted(self._manager.all_steps())

    def resolve(self, step: StepSelector) -> int:
        """Returns the number of a step, or of the ``"last"`` or ``"best"`` one."""
        steps = self.steps
        if not steps:
            raise ConfigError(f"{self._description}: holds no finished checkpoint")
        if step == "last":
            return steps[-1]
        if step == "best":
            best = self._best_step(steps)
            return steps[-1] if best is None else best
        if step not in steps:
            raise ConfigError(f"--step={step}: no such checkpoint; there are {self._listed()}")
        return step

    def save(
        self,
        state: TrainState,
        *,
        step: int,
        metrics: dict[str, float] | None = None,
        losses: Sequence[float] | None = None,
    ) -> None:
        """Starts an asynchronous save.

        Args:
          state: what to save.
          step: the number of steps done.
          metrics: evaluation metrics, by which the best checkpoint is chosen.
          losses: recent losses, against which a resumed run detects loss spikes.
        """
        if self._best is not None and metrics is not None and self._best not in metrics:
            raise ConfigError(
                f"checkpoint.best={self._best!r}: evaluation has no such metric; choose from {', '.join(metrics)}"
            )
        self.wait()
        self._manifest = {"metrics": metrics, "losses": losses}
        trees = _required_items(state) | {_item(name): vars(own) for name, own in state.augment.items()}
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items[MANIFEST] = ocp.args.JsonSave({"checksums": checksums.tree_checksums(trees), **self._manifest})
        try:
            if self._stale or self._is_deleted(self._directory):
                self._reopen()
            if collectives.is_main_process():
                location.check_writable(self._directory)
            if self._best is not None and metrics is not None:
                self._scores[step] = float(metrics[self._best])
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            self._handle_failure(step, error)
        else:
            self._saving = step

    def check(self) -> None:
        """Handles a failure of the save in progress, without waiting for it."""
        # The manager's check_for_errors would hide the error of the thread that deletes older checkpoints.
        if self._saving is None:
            return
        if jax.process_count() > 1 and (error := orbax_errors.take_logged_error()) is not None:
            self._handle_failure(self._saving, error)
        elif jax.process_count() == 1 and not self._manager.is_saving_in_progress():
            self.wait()

    def restore(self, target: TrainState, *, step: StepSelector = "last") -> TrainState:
        """Returns the state of a checkpoint; raises DamagedCheckpoint if it is not intact.

        Args:
          target: shapes with shardings. Augmentations that the checkpoint lacks, or has in other shapes, are left out
            of the result, because they may change between starts.
          step: which checkpoint.
        """
        learned = {_item(name): vars(own) for name, own in target.augment.items()}
        reader = self._reader(collectives.broadcast(self.resolve(step)))
        items = reader.read_items(_required_items(target), optional=learned)
        return TrainState(
            step=items["training"]["step"],
            params=items["params"],
            opt_state=items["training"]["opt_state"],
            ema_params=items.get("ema_params"),
            momentum_params=items.get("momentum_params"),
            augment={n: AugmentState(**items[_item(n)]) for n in target.augment if _item(n) in items},
            objective=items.get("objective", {}),
            gate=items.get("gate", {}),
        )

    def restore_newest(self, target: TrainState) -> TrainState:
        """Returns the state of the newest intact checkpoint; logs newer, damaged ones and moves them aside.

        If none can be read, the cause is more likely the disk, the memory or a version than damage to all of them, so
        this raises ConfigError and leaves them in place.
        """
        damaged: list[DamagedCheckpoint] = []
        untried = self.steps
        while (step := collectives.broadcast(untried[-1] if untried else -1)) >= 0:
            untried = [older for older in untried if older < step]
            try:
                state = self.restore(target, step=step)
            except DamagedCheckpoint as error:
                damaged.append(error)
                continue
            for other in damaged:
                path = self._move_aside(other.step)
                logger.warning(
                    f"the checkpoint of step {other.step} is damaged ({other.cause}); it was moved to {path}"
                )
            return state
        causes = "; ".join(f"step {error.step}: {error.cause}" for error in damaged)
        raise ConfigError(
            f"{self._description}: none of its checkpoints can be read ({causes}); they stay in place: fix "
            f"the cause, or move {self._directory} away to train from scratch"
        )

    def restore_params(self, target: Params, *, step: StepSelector = "last", ema: bool = False) -> Params:
        """Returns the parameters, or their moving average if ``ema``; ``target`` has their shapes and shardings."""
        item = "ema_params" if ema else "params"
        check_memory(target)
        return self.retry_if_deleted(step, lambda step: self._reader(step).read_items({item: target})[item])[1]

    def read_losses(self, step: int) -> list[float]:
        """Returns the losses saved with the checkpoint of ``step``; empty if there is no such checkpoint."""
        return self._reader(step).read_manifest()["losses"] if step in self.steps else []

    def delete_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps; every process must call this."""
        self.wait()
        for later in [other for other in self.steps if other > step]:
            self._manager.delete(later)
            self._scores.pop(later, None)

    def read_params(self, *, step: StepSelector = "last", ema: bool = False) -> dict[str, np.ndarray]:
        """Returns the parameters as NumPy arrays by path, sorted by path, without model or configuration."""
        tree = self.retry_if_deleted(step, lambda step: self._reader(step).read_params(ema=ema))[1]
        return dict(sorted(flatten(tree).items()))

    def retry_if_deleted(self, step: StepSelector, read: Callable[[int], T]) -> tuple[int, T]:
        """Returns the step number and ``read(number)``.

        If a running training deletes the last or best checkpoint meanwhile, its successor is read instead.
        """
        selector = step
        while True:
            step = collectives.broadcast(self.resolve(selector))
            try:
                return step, read(step)
            except DamagedCheckpoint:
                if not collectives.broadcast(location.is_deleted(self._folder(step))):
                    raise
            self._reopen()
            if isinstance(selector, int):
                raise ConfigError(f"--step={step}: was deleted while it was read; there are {self._listed()}")
            logger.warning(
                f"the checkpoint of step {step} was deleted while it was read; going on with {self._listed()}"
            )

    @property
    def saving(self) -> bool:
        """Whether a save is in progress."""
        return self._manager.is_saving_in_progress()

    def finish(self, state: TrainState, *, step: int) -> None:
        """Waits until the checkpoint of ``step`` is on disk; tries once more, then raises CheckpointNotSaved."""
        self.wait()
        if step not in self.steps or self._is_deleted(self._folder(step)):  # Orbax may only have waited too long
            self._stale = True
            self.save(state, step=step, **self._manifest)
            self.wait()
        if step not in self.steps:
            raise CheckpointNotSaved(f"{self._failure}; make room and run the same command again")

    def close(self) -> None:
        """Waits for the save in progress and stops the threads."""
        self.wait()
        with contextlib.suppress(Exception):  # failed saves have been reported already
            self._manager.close()

    def wait(self) -> None:
        """Waits until the save in progress is on disk or has failed."""
        if self._saving is None:
            return
        step, self._saving = self._saving, None
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._handle_failure(step, error)

    def _handle_failure(self, step: int, error: BaseException) -> None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            raise error  # the devices, not the disk
        self._saving = None
        if jax.process_count() > 1:
            raise CheckpointNotSaved(
                f"the checkpoint of step {step} could not be written ({explain(error)})"
            ) from error
        with contextlib.suppress(Exception):
            self._reopen()
        self._stale = True  # the file system may not show everything yet
        if step in self.steps:  # the save succeeded; deleting older ones failed
            logger.warning(f"old checkpoints could not be deleted ({explain(error)})")
            return
        last = f"the last one is of step {self.steps[-1]}" if self.steps else "there is no earlier one"
        self._failure = f"the checkpoint of step {step} could not be written ({explain(error)}); {last}"
        logger.warning(f"{self._failure}; training goes on and tries again at the next save")

    def _reopen(self) -> None:
        """Opens the directory again after removing the remains of failed saves."""
        with contextlib.suppress(Exception):
            self._manager.close()
        if not self._read_only:
            for leftover in self._directory.glob(f"*{_UNFINISHED}*"):  # Orbax removes them too, but later
                with contextlib.suppress(Exception):
                    leftover.rmtree()
        self._open()

    def _move_aside(self, step: int) -> epath.Path:
        path = location.unused_path(self._directory.with_name(f"{self._directory.name}.damaged") / str(step))
        if collectives.is_main_process():
            path.parent.mkdir(exist_ok=True)
            self._folder(step).rename(path)
        collectives.barrier("move checkpoint aside")
        self._reopen()
        return path

    def _is_deleted(self, path: epath.Path) -> bool:
        return jax.process_count() == 1 and not path.exists()  # several processes might not agree

    def _reader(self, step: int) -> CheckpointReader:
        return CheckpointReader(self._folder(step), step)

    def _folder(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _listed(self) -> str:
        return ", ".join(map(str, self.steps)) or "none"

    def _best_step(self, steps: Sequence[int]) -> int | None:
        scored = [(self._scores[s], s) for s in steps if s in self._scores and not math.isnan(self._scores[s])]
        return max(scored)[1] if scored else None


def _required_items(state: TrainState) -> dict[str, Any]:
    """The parts of the state that a checkpoint must have: all but those of augmentations."""
    items: dict[str, Any] = {"params": state.params, "training": {"step": state.step, "opt_state": state.opt_state}}
    names = ("ema_params", "momentum_params", "objective", "gate")
    return items | {name: own for name in names if (own := getattr(state, name))}


def _item(augmentation: str) -> str:
    return f"augment.{augmentation}"
