"""One saved checkpoint: its items, read from their folder and compared with the checksums beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mmjax.checkpoints import checksums, orbax_errors
from mmjax.checkpoints.orbax_errors import Damaged
from mmjax.core.config import ConfigError
from mmjax.parallel import collectives

FACTS = "facts"
"""The item that says what the others must be (``checksums``), and what was known then (``metrics``, ``losses``)."""


class Saved:
    """The checkpoint of ``step`` in ``folder``; every way of reading it raises Damaged where it is not whole.

    It is not read through orbax's manager: there every process waits for all others, also for one that cannot read.
    """

    def __init__(self, folder: Any, step: int):
        self.folder = folder
        self.step = step

    def facts(self) -> dict[str, Any]:
        """``checksums`` of the items by name, ``metrics`` or None, and ``losses``, of which there may be none."""
        try:
            facts = ocp.JsonCheckpointHandler().restore(self.folder / FACTS)
            losses = [float(loss) for loss in facts.get("losses") or ()]
            return {"checksums": dict(facts["checksums"]), "metrics": facts["metrics"], "losses": losses}
        except Exception as error:  # orbax and tensorstore raise anything on a damaged file
            raise Damaged(self.step, orbax_errors.reason(error)) from error

    def read(self, trees: Mapping[str, Any], *, optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The items laid out as ``trees`` (shapes with shardings) say; all processes give them or raise.

        Of the ``optional`` ones it reads those that are there in the same shapes.
        """
        found: dict[str, Any] = {}
        trouble: Damaged | None = None
        try:
            facts = self.facts()
            trees = {**trees, **{name: tree for name, tree in (optional or {}).items() if self._has(name, tree)}}
            for name, tree in trees.items():
                found[name] = ocp.StandardCheckpointHandler().restore(
                    self.folder / name, args=ocp.args.StandardRestore(tree)
                )
        except Damaged as error:
            trouble = error
        except Exception as error:
            trouble = Damaged(self.step, orbax_errors.reason(error))
            trouble.__cause__ = error
        if not collectives.all_true(trouble is None):
            raise trouble or Damaged(self.step, "another process cannot read it")
        self._compare(found, facts, checksums.of_trees(found))
        return found

    def read_params(self) -> Any:
        """The weights as they were saved, for one process alone; needs neither model nor configuration."""
        try:
            handler = ocp.StandardCheckpointHandler()
            shapes = handler.metadata(self.folder / "params").tree
            orbax_errors.check_memory(shapes)
            # Without a place for what other devices have saved, it would want those.
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            args = ocp.args.StandardRestore(fallback_sharding=here)
            params = jax.tree.map(np.asarray, handler.restore(self.folder / "params", args=args))
        except ConfigError:
            raise
        except Exception as error:
            raise Damaged(self.step, orbax_errors.reason(error)) from error
        self._compare({"params": params}, self.facts(), {"params": checksums.of_arrays(jax.tree.leaves(params))})
        return params

    def _has(self, name: str, tree: Any) -> bool:
        folder = self.folder / name
        return folder.exists() and _shapes(tree) == _shapes(ocp.StandardCheckpointHandler().metadata(folder).tree)

    def _compare(self, found: Mapping[str, Any], facts: Mapping[str, Any], sums: Mapping[str, Sequence[int]]) -> None:
        for name, values in sums.items():
            wanted = facts["checksums"].get(name) or ()
            if len(wanted) != len(values):
                raise Damaged(self.step, f"{name} holds {len(values)} arrays where {len(wanted)} were saved")
            for path, value, other in zip(_paths(found[name]), values, wanted, strict=True):
                if value != other:
                    raise Damaged(self.step, f"{name}/{path} is not what was saved")


def _paths(tree: Any) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of a tree, or of the metadata that a checkpoint keeps of one (a named tuple is a dictionary)."""
    return dict(zip(_paths(tree), [tuple(leaf.shape) for leaf in jax.tree.leaves(tree)], strict=True))
