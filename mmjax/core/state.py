"""What training carries from step to step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

Params = dict[str, Any]
"""Nested dictionaries of arrays: JAX flattens these 30 times faster than NNX modules at each step's dispatch."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentState:
    """What an augmentation learns; evaluation, export and the moving average never see it."""

    params: Params
    opt_state: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything a checkpoint holds; randomness and the batch follow from ``step`` (and ``Rewinds``)."""

    step: jax.Array  # i32[], steps done
    params: Params
    opt_state: Any
    ema_params: Params | None  # exponential moving average of params
    augment: dict[str, AugmentState] = dataclasses.field(default_factory=dict)  # of those that learn, by name


def parameter_paths(params: Params) -> Any:
    """Returns a tree like ``params`` with the path of each leaf, such as ``visual/blocks/attn/query/kernel``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
    )
