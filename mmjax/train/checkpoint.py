"""Checkpoints: asynchronous, atomic, the latest few and the best one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from mmjax.config import ConfigError
from mmjax.train.state import AugmentState, Params, TrainState

_LOSSES = "losses"

Which = int | Literal["last", "best"]


class Checkpoints:
    """The checkpoints of one run folder.

    ``params`` (and ``average``) are items of their own, so that evaluation and export read only them; so is what the
    augmentations learn.
    """

    def __init__(self, workdir: str | Path, *, keep: int = 1, best: str | None = None, read_only: bool = False):
        self._best = best
        policies: list[Any] = [LatestN(keep)]
        if best is not None:
            policies.append(
                BestN(get_metric_fn=lambda metrics: metrics[best], n=1, keep_checkpoints_without_metrics=False)
            )
        directory = Path(workdir).absolute() / "checkpoints"
        if read_only and not directory.is_dir():
            raise ConfigError(f"--workdir={workdir}: holds no checkpoints; train there first")
        self._manager = ocp.CheckpointManager(
            directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                best_fn=None if best is None else lambda metrics: metrics[best],
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
        )

    @property
    def steps(self) -> list[int]:
        """Steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    def resolve(self, which: Which) -> int:
        """The step that ``which`` means."""
        steps = self.steps
        if not steps:
            raise ConfigError(f"--workdir={Path(self._manager.directory).parent}: holds no finished checkpoint")
        if which == "last":
            return steps[-1]
        if which == "best":
            best = self._manager.best_step()
            return steps[-1] if best is None else best
        if which not in steps:
            raise ConfigError(f"--step={which}: no such checkpoint; there are {', '.join(map(str, steps))}")
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
        items = {
            "params": ocp.args.StandardSave(state.params),
            "training": ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
        }
        if state.average is not None:
            items["average"] = ocp.args.StandardSave(state.average)
        for name, own in state.augment.items():
            items[_item(name)] = ocp.args.StandardSave(vars(own))
        if losses is not None:
            items[_LOSSES] = ocp.args.JsonSave({"values": list(losses)})
        if self._best is not None and metrics is not None and self._best not in metrics:
            raise ConfigError(f"checkpoint.best={self._best!r}: evaluation gives no such metric; {', '.join(metrics)}")
        chosen = metrics if self._best is not None else None
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=chosen, force=True)

    def restore(self, target: TrainState, *, which: Which = "last") -> TrainState:
        """The state of a checkpoint, laid out as ``target`` (shapes with shardings) says.

        Of ``target.augment`` it holds what the checkpoint has in the same shapes: augmentations may be switched.
        """
        step = self.resolve(which)
        items = {
            "params": ocp.args.StandardRestore(target.params),
            "training": ocp.args.StandardRestore({"step": target.step, "opt_state": target.opt_state}),
        }
        if target.average is not None:
            items["average"] = ocp.args.StandardRestore(target.average)
        saved = self._manager.item_metadata(step)
        learned = {
            name: own for name, own in target.augment.items() if _shapes(vars(own)) == _shapes(saved.get(_item(name)))
        }
        items |= {_item(name): ocp.args.StandardRestore(vars(own)) for name, own in learned.items()}
        found = self._manager.restore(step, args=ocp.args.Composite(**items))
        return TrainState(
            step=found["training"]["step"],
            params=found["params"],
            opt_state=found["training"]["opt_state"],
            average=found.get("average"),
            augment={name: AugmentState(**found[_item(name)]) for name in learned},
        )

    def restore_params(self, target: Params, *, which: Which = "last", averaged: bool = False) -> Params:
        """The weights alone, laid out as ``target`` says."""
        item = "average" if averaged else "params"
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(target)})
        return self._manager.restore(self.resolve(which), args=args)[item]

    def read_losses(self, step: int) -> list[float]:
        """The losses that were saved with the checkpoint of ``step``; none where there were none to save."""
        if not (self._manager.directory / str(step) / _LOSSES).exists():
            return []
        args = ocp.args.Composite(**{_LOSSES: ocp.args.JsonRestore()})
        return self._manager.restore(step, args=args)[_LOSSES]["values"]

    def forget_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps; every process must ask."""
        for later in [saved for saved in self.steps if saved > step]:
            self._manager.delete(later)

    def read_params(self, *, which: Which = "last") -> dict[str, np.ndarray]:
        """The weights as flat numpy arrays by path, in sorted order; needs no model and no configuration."""
        args = ocp.args.Composite(params=ocp.args.StandardRestore())
        tree = self._manager.restore(self.resolve(which), args=args)["params"]
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        named = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
        return dict(sorted(named.items()))

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then frees the writer's threads."""
        self._manager.wait_until_finished()
        self._manager.close()


def _item(augmentation: str) -> str:
    return f"augment.{augmentation}"


def _shapes(tree: Any) -> Any:
    """Paths and shapes of a tree, or of the metadata that a checkpoint keeps of one (a named tuple is a dictionary)."""
    tree = getattr(tree, "tree", tree)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
