"""Where parameters and optimizer state live: a policy over shapes, the model untouched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.parallel.mesh import batch_sharding, replicated
from mmjax.train.state import AugmentState, TrainState

FSDP_MIN_SIZE = 2**14
"""Arrays of fewer elements stay whole: gathering them costs more in latency than they take in memory."""


def parameter_shardings(params: Any, mesh: Mesh, *, min_size: int = FSDP_MIN_SIZE) -> Any:
    """For each array its sharding: the largest dimension that ``fsdp`` divides, or the whole array.

    Ties go to the last dimension, which leaves the layer axis of stacked blocks alone.
    """
    size = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        if size == 1 or leaf.size < min_size:
            return replicated(mesh)
        candidates = [(dim, axis) for axis, dim in enumerate(leaf.shape) if dim % size == 0]
        if not candidates:
            return replicated(mesh)
        _, axis = max(candidates)
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    return jax.tree.map(place, params)


def state_shardings(
    state: TrainState,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    augment: Mapping[str, optax.GradientTransformation],
) -> Any:
    """A training state of shardings for one of shapes; moments and averages follow their parameters.

    ``tx`` and, for each augmentation that learns, ``augment`` made the moments.
    Explicit, because ``jax.jit(tx.init)`` alone would put the moments on one device.
    """
    whole = replicated(mesh)
    params = parameter_shardings(state.params, mesh)
    learned = {}
    for name, own in state.augment.items():
        inner = parameter_shardings(own.params, mesh)
        learned[name] = AugmentState(params=inner, opt_state=_follow(augment[name], own.opt_state, inner, whole))
    places: dict[str, Any] = {
        "step": whole,
        "params": params,
        "opt_state": _follow(tx, state.opt_state, params, whole),
        "average": None if state.average is None else params,
        "augment": learned,
    }
    return TrainState(**places)


def _follow(tx: optax.GradientTransformation, opt_state: Any, params: Any, whole: NamedSharding) -> Any:
    """Shardings of ``opt_state``: those of the parameters for what is shaped like them."""

    def masked(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)  # stands where the moments of parameters not trained by it would be

    return optax.tree.map_params(
        tx,
        lambda leaf, sharding: leaf if masked(leaf) else sharding,
        opt_state,
        params,
        transform_non_params=lambda _: whole,
        is_leaf=masked,
    )


def batch_shardings(batch: Any, mesh: Mesh) -> Any:
    """Every array of a batch is split by rows."""
    return jax.tree.map(lambda _: batch_sharding(mesh), batch)
