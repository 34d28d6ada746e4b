"""Checkpoints: asynchronous, atomic, checked when they are read; the latest few and the best one."""

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

from mmjax.checkpoints import checksums, location, orbax_errors
from mmjax.checkpoints.orbax_errors import Damaged, NotSaved
from mmjax.checkpoints.reader import FACTS, Saved
from mmjax.core.config import ConfigError
from mmjax.core.state import AugmentState, Params, TrainState
from mmjax.parallel import collectives

Which = int | Literal["last", "best"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

_UNFINISHED = ".orbax-checkpoint-tmp"


class Checkpoints:
    """The checkpoints of one run folder.

    ``params`` (and ``ema_params``) are items of their own, so that evaluation and export read only them; so is what the
    augmentations learn. Beside them stand the checksums of all arrays.

    A checkpoint that cannot be written does not end a run that can go on: a warning is logged, what was written of it
    is removed, and the next ``save`` tries again. With several processes the one that could not write raises NotSaved,
    because the others cannot know.
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
        """``directory``: as in ``CheckpointConfig``; ``read_only``: nothing is saved or tidied up."""
        self._keep = keep
        self._best = best
        self._read_only = read_only
        self._directory = location.locate(workdir, directory)
        self._named = location.named(workdir, directory)
        if read_only and not self._directory.is_dir():
            raise ConfigError(f"{self._named}: holds no checkpoints; train there first")
        orbax_errors.quieten_orbax()
        self._saving: int | None = None
        self._failure = ""
        self._beside: dict[str, Any] = {}  # what the last save was given beside the state
        self._open()

    def _open(self) -> None:
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Preserved(self._keep, self._best_step),
                cleanup_tmp_directories=not self._read_only,
                read_only=self._read_only,
            ),
        )
        self._stale = False
        self._scores: dict[int, float] = {}
        for step in self.steps if self._best is not None else ():
            try:
                measured = self._saved(step).facts()["metrics"] or {}
            except Damaged as error:
                if not orbax_errors.vanishes(self._folder(step)):
                    logger.warning(f"what was measured at step {step} cannot be read ({error.cause})")
                continue
            if self._best in measured:
                self._scores[step] = float(measured[self._best])

    @property
    def steps(self) -> list[int]:
        """Steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    def resolve(self, which: Which) -> int:
        """The step that ``which`` means."""
        steps = self.steps
        if not steps:
            raise ConfigError(f"{self._named}: holds no finished checkpoint")
        if which == "last":
            return steps[-1]
        if which == "best":
            best = self._best_step(steps)
            return steps[-1] if best is None else best
        if which not in steps:
            raise ConfigError(f"--step={which}: no such checkpoint; there are {self._listed()}")
        return which

    def save(
        self,
        state: TrainState,
        *,
        step: int,
        metrics: dict[str, float] | None = None,
        losses: Sequence[float] | None = None,
    ) -> None:
        """Starts saving; training goes on meanwhile.

        ``metrics`` are what the best one is chosen by, ``losses`` those that further ones are judged by.
        """
        if self._best is not None and metrics is not None and self._best not in metrics:
            raise ConfigError(f"checkpoint.best={self._best!r}: evaluation gives no such metric; {', '.join(metrics)}")
        self.wait()
        self._beside = {"metrics": metrics, "losses": losses}
        trees: dict[str, Any] = {"params": state.params}
        trees["training"] = {"step": state.step, "opt_state": state.opt_state}
        if state.ema_params is not None:
            trees["ema_params"] = state.ema_params
        trees |= {_item(name): vars(own) for name, own in state.augment.items()}
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items[FACTS] = ocp.args.JsonSave({"checksums": checksums.of_trees(trees), **self._beside})
        try:
            if collectives.is_main_process():
                orbax_errors.check_writable(self._directory)
            if self._stale:
                self._reopen()
            if self._best is not None and metrics is not None:
                self._scores[step] = float(metrics[self._best])
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            self._failed(step, error)
        else:
            self._saving = step

    def check(self) -> None:
        """Notices, without waiting, where what is being saved has failed."""
        # Not by the manager's check_for_errors: it takes the error away from the thread that then removes older ones.
        if self._saving is None:
            return
        if jax.process_count() > 1 and (error := orbax_errors.noticed()) is not None:
            self._failed(self._saving, error)
        elif jax.process_count() == 1 and not self._manager.is_saving_in_progress():
            self.wait()

    def restore(self, target: TrainState, *, which: Which = "last") -> TrainState:
        """The state of a checkpoint, laid out as ``target`` (shapes with shardings) says; raises Damaged.

        Of ``target.augment`` it holds what the checkpoint has in the same shapes: augmentations may be switched.
        """
        trees: dict[str, Any] = {
            "params": target.params,
            "training": {"step": target.step, "opt_state": target.opt_state},
        }
        if target.ema_params is not None:
            trees["ema_params"] = target.ema_params
        learned = {_item(name): vars(own) for name, own in target.augment.items()}
        found = self._saved(collectives.broadcast(self.resolve(which))).read(trees, optional=learned)
        return TrainState(
            step=found["training"]["step"],
            params=found["params"],
            opt_state=found["training"]["opt_state"],
            ema_params=found.get("ema_params"),
            augment={n: AugmentState(**found[_item(n)]) for n in target.augment if _item(n) in found},
        )

    def restore_newest(self, target: TrainState) -> TrainState:
        """The state of the newest checkpoint that is whole; newer ones are named and moved aside.

        They count as damaged because another one can be read. Where none can, that says more about the disk, the
        memory or the versions than about all of them: it is an error, and they stay where they are.
        """
        damaged: list[Damaged] = []
        left = self.steps
        while (step := collectives.broadcast(left[-1] if left else -1)) >= 0:
            left = [older for older in left if older < step]
            try:
                state = self.restore(target, which=step)
            except Damaged as error:
                damaged.append(error)
                continue
            for other in damaged:
                place = self._set_aside(other.step)
                logger.warning(
                    f"the checkpoint of step {other.step} is damaged ({other.cause}); it was moved to {place}"
                )
            return state
        found = "; ".join(f"step {error.step}: {error.cause}" for error in damaged)
        raise ConfigError(
            f"{self._named}: none of its checkpoints can be read ({found}); they stay where they are: mend "
            f"what keeps them from being read, or move {self._directory} away to train from the beginning"
        )

    def restore_params(self, target: Params, *, which: Which = "last", ema: bool = False) -> Params:
        """The weights alone, laid out as ``target`` says; raises Damaged."""
        item = "ema_params" if ema else "params"
        orbax_errors.check_memory(target)
        return self.following(which, lambda step: self._saved(step).read({item: target})[item])[1]

    def read_losses(self, step: int) -> list[float]:
        """The losses that were saved with the checkpoint of ``step``; none where there is none, or none with it."""
        return self._saved(step).facts()["losses"] if step in self.steps else []

    def forget_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps; every process must ask."""
        self.wait()
        for later in [saved for saved in self.steps if saved > step]:
            self._manager.delete(later)
            self._scores.pop(later, None)

    def read_params(self, *, which: Which = "last") -> dict[str, np.ndarray]:
        """The weights as flat numpy arrays by path, in sorted order; needs no model and no configuration."""
        tree = self.following(which, lambda step: self._saved(step).read_params())[1]
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return dict(sorted((jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves))

    def following(self, which: Which, read: Callable[[int], T]) -> tuple[int, T]:
        """The step, and what ``read`` makes of it; where training deletes that meanwhile, of the one it then is."""
        while True:
            step = collectives.broadcast(self.resolve(which))
            try:
                return step, read(step)
            except Damaged:
                if not collectives.broadcast(orbax_errors.vanishes(self._folder(step))):
                    raise
            self._reopen()
            if isinstance(which, int):
                raise ConfigError(f"--step={step}: was deleted while it was read; there are {self._listed()}")
            logger.warning(
                f"the checkpoint of step {step} was deleted while it was read; going on with {self._listed()}"
            )

    @property
    def saving(self) -> bool:
        """Whether the last save is not yet on disk."""
        return self._manager.is_saving_in_progress()

    def finish(self, state: TrainState, *, step: int) -> None:
        """Returns when the checkpoint of ``step`` is on disk; raises NotSaved where that fails a second time too."""
        self.wait()
        if step not in self.steps:  # orbax looks at the clock while it waits, so it may have been that alone
            self.save(state, step=step, **self._beside)
            self.wait()
        if step not in self.steps:
            raise NotSaved(f"{self._failure}; make room and run the same command again")

    def close(self) -> None:
        """Waits, then frees the writer's threads."""
        self.wait()
        with contextlib.suppress(Exception):  # what could not be written has been said
            self._manager.close()

    def wait(self) -> None:
        """Returns when what is being saved is on disk, or could not be written."""
        if self._saving is None:
            return
        step, self._saving = self._saving, None
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._failed(step, error)

    def _failed(self, step: int, error: BaseException) -> None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            raise error  # the devices, not the disk
        self._saving = None
        if jax.process_count() > 1:
            raise NotSaved(
                f"the checkpoint of step {step} could not be written ({orbax_errors.reason(error)})"
            ) from error
        with contextlib.suppress(Exception):
            self._reopen()
        self._stale = True  # and what can be seen of it now may not be all
        if step in self.steps:  # it is there: what failed is the removal of older ones
            logger.warning(f"old checkpoints could not be removed ({orbax_errors.reason(error)})")
            return
        last = f"the last one is of step {self.steps[-1]}" if self.steps else "there is none before it"
        self._failure = f"the checkpoint of step {step} could not be written ({orbax_errors.reason(error)}); {last}"
        logger.warning(f"{self._failure}; training goes on and tries again when the next one is due")

    def _reopen(self) -> None:
        """Takes the folder as it is now, without what is left in it of saves that failed."""
        with contextlib.suppress(Exception):
            self._manager.close()
        if not self._read_only:
            for leftover in self._directory.glob(f"*{_UNFINISHED}*"):  # orbax gets to it, but only some time
                with contextlib.suppress(Exception):
                    leftover.rmtree()
        self._open()

    def _set_aside(self, step: int) -> epath.Path:
        place = orbax_errors.free_place(self._directory.with_name(f"{self._directory.name}.damaged") / str(step))
        if collectives.is_main_process():
            place.parent.mkdir(exist_ok=True)
            self._folder(step).rename(place)
        collectives.barrier("set aside")
        self._reopen()
        return place

    def _saved(self, step: int) -> Saved:
        return Saved(self._folder(step), step)

    def _folder(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _listed(self) -> str:
        return ", ".join(map(str, self.steps)) or "none"

    def _best_step(self, steps: Sequence[int]) -> int | None:
        scored = [(self._scores[s], s) for s in steps if s in self._scores and not math.isnan(self._scores[s])]
        return max(scored)[1] if scored else None


class _Preserved:
    """Keeps the ``latest`` checkpoints, and the best one."""

    def __init__(self, latest: int, best: Callable[[Sequence[int]], int | None]):
        self._latest = latest
        self._best = best

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For each checkpoint whether it stays."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*sorted(steps)[-self._latest :], self._best(steps)}
        return [step in kept for step in steps]


def _item(augmentation: str) -> str:
    return f"augment.{augmentation}"
