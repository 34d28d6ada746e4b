"""Reads one checkpoint and compares it with its checksums."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mmjax.checkpoints import checksums
from mmjax.checkpoints.orbax_errors import DamagedCheckpoint, explain
from mmjax.core.config import ConfigError
from mmjax.parallel import collectives
from mmjax.parallel.host_memory import memory_bytes

MANIFEST = "manifest"
"""The JSON item of a checkpoint with the ``checksums`` of the others, and ``metrics`` and ``losses`` of the run."""


class CheckpointReader:
    """Reads the checkpoint of ``step`` in ``folder``; raises DamagedCheckpoint if it is not intact.

    It does not use Orbax's manager, in which every process waits for all others, even for one that cannot read.
    """

    def __init__(self, folder: Any, step: int):
        self.folder = folder
        self.step = step

    def read_manifest(self) -> dict[str, Any]:
        """Returns ``checksums`` by item, ``metrics`` (or None) and ``losses`` (possibly empty)."""
        try:
            manifest = ocp.JsonCheckpointHandler().restore(self.folder / MANIFEST)
            return {
                "checksums": {name: [int(n) for n in sums] for name, sums in manifest["checksums"].items()},
                "metrics": {name: float(value) for name, value in (manifest["metrics"] or {}).items()} or None,
                "losses": [float(loss) for loss in manifest.get("losses") or ()],
            }
        except Exception as error:  # Orbax and TensorStore raise all kinds of errors on damaged files
            raise DamagedCheckpoint(self.step, explain(error)) from error

    def read_items(self, targets: Mapping[str, Any], *, optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Reads items in all processes; if one process cannot read them, all raise.

        Args:
          targets: for each item a tree of shapes with shardings.
          optional: more items, which are read only if they exist with these shapes.
        """
        items: dict[str, Any] = {}
        failure: DamagedCheckpoint | None = None
        try:
            manifest = self.read_manifest()
            targets = {**targets, **{name: tree for name, tree in (optional or {}).items() if self._has(name, tree)}}
            for name, tree in targets.items():
                args = ocp.args.StandardRestore(tree)
                items[name] = ocp.StandardCheckpointHandler().restore(self.folder / name, args=args)
        except DamagedCheckpoint as error:
            failure = error
        except Exception as error:
            failure = DamagedCheckpoint(self.step, explain(error))
            failure.__cause__ = error
        if not collectives.all_true(failure is None):
            raise failure or DamagedCheckpoint(self.step, "another process cannot read it")
        self._compare(items, manifest, checksums.tree_checksums(items))
        return items

    def read_params(self, *, ema: bool = False) -> Any:
        """Returns the parameters as NumPy arrays, in this process alone and without model or configuration."""
        item = "ema_params" if ema else "params"
        try:
            handler = ocp.StandardCheckpointHandler()
            shapes = handler.metadata(self.folder / item).tree
            check_memory(shapes)
            # Each named: Orbax would take the devices that saved the arrays, which may be another process's.
            sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
            args = ocp.args.StandardRestore(target)
            params = jax.tree.map(np.asarray, handler.restore(self.folder / item, args=args))
        except ConfigError:
            raise
        except Exception as error:
            raise DamagedCheckpoint(self.step, explain(error)) from error
        sums = checksums.array_checksums(jax.tree.leaves(params))
        self._compare({item: params}, self.read_manifest(), {item: sums})
        return params

    def _has(self, name: str, tree: Any) -> bool:
        folder = self.folder / name
        return folder.exists() and _shapes(tree) == _shapes(ocp.StandardCheckpointHandler().metadata(folder).tree)

    def _compare(
        self, items: Mapping[str, Any], manifest: Mapping[str, Any], sums: Mapping[str, Sequence[int]]
    ) -> None:
        for name, values in sums.items():
            expected = manifest["checksums"].get(name) or ()
            if len(expected) != len(values):
                raise DamagedCheckpoint(self.step, f"{name} has {len(values)} arrays, but {len(expected)} were saved")
            for path, value, other in zip(_paths(items[name]), values, expected, strict=True):
                if value != other:
                    raise DamagedCheckpoint(self.step, f"{name}/{path} differs from what was saved")


def check_memory(tree: Any) -> None:
    """Raises if arrays of these shapes, which a damaged file may claim, exceed this machine's memory."""
    needed = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
    available = memory_bytes()
    if needed > available * jax.process_count():
        raise ConfigError(
            f"--workdir: its parameters need {needed / 2**30:,.0f} GiB, more than this machine's "
            f"{available / 2**30:,.0f} GiB of memory; read them on a larger one"
        )


def _paths(tree: Any) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns shapes by path, of a tree or of Orbax's metadata (where named tuples are dictionaries)."""
    return dict(zip(_paths(tree), [tuple(leaf.shape) for leaf in jax.tree.leaves(tree)], strict=True))
