"""The state that training carries from step to step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

Params = dict[str, Any]
"""Nested dictionaries of arrays, which JAX flattens 30 times faster than NNX modules when it dispatches a step."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentState:
    """The trained state of one augmentation; evaluation, export and the moving average ignore it."""

    params: Params
    opt_state: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """The content of a checkpoint. Randomness and batches follow from ``step`` (and from ``Rewinds``)."""

    step: jax.Array  # i32[], completed steps
    params: Params
    opt_state: Any
    ema_params: Params | None  # exponential moving average of params
    augment: dict[str, AugmentState] = dataclasses.field(default_factory=dict)  # by name, of those that are trained
    momentum_params: Params | None = None  # a moving average that the objective compares with
    objective: dict[str, jax.Array] = dataclasses.field(default_factory=dict)  # what an objective carries on, by name
    gate: dict[str, jax.Array] = dataclasses.field(default_factory=dict)  # the same of the gate


def flatten(params: Params) -> dict[str, Any]:
    """The leaves by path, such as ``visual/blocks/attn/query/kernel``."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def parameter_paths(params: Params) -> Any:
    """Returns a tree like ``params`` with the path of each leaf, such as ``visual/blocks/attn/query/kernel``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
    )
