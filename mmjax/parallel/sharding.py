"""Shardings of parameters and optimizer state, chosen by a policy over parameter paths and shapes.

``fsdp``
    Each large array is split over the ``fsdp`` axis along its largest dimension (the last of equal ones).
``tensor``
    Megatron's tensor parallelism (Shoeybi et al. 2019, arXiv:1909.08053): attention is split by heads and an MLP by
    hidden units, so that each needs one all-reduce over the ``tensor`` axis. Everything else is replicated.
``auto``
    Both: ``tensor`` where it applies, then ``fsdp`` along the largest remaining dimension. If ``tensor`` does not
    divide the heads (hidden units), the attention (MLP) is replicated over that axis.
``replicated``
    Every array is replicated on all devices.

``mesh.optimizer=zero`` is ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054), stages 1 and 2: each device along ``data``
updates its part of the parameters alone. It receives that part of the gradients, keeps the moments and the average of
it, and sends the result to the others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.core.config import ConfigError
from mmjax.core.row_sharding import num_shards
from mmjax.core.state import AugmentState, TrainState, parameter_paths
from mmjax.parallel.mesh import MeshConfig, Policy, Spec, batch_sharding, replicated

Rules = Policy | tuple[tuple[str, Policy | Spec], ...]

FSDP_MIN_SIZE = 2**14
"""Arrays with fewer elements are replicated: the latency of gathering them outweighs the memory saved."""

_STACKED = re.compile(r"(^|/)blocks/")  # the first axis is the layer, which a scan iterates over
_MEGATRON = (  # path, axis that ``tensor`` splits (counted from the end, because stacked blocks add a first axis), unit
    (re.compile(r".*/(cross_)?attn/(query|key|value)/(kernel|bias|lora/b)$"), -2, "heads"),
    (re.compile(r".*/(cross_)?attn/out/(kernel|lora/a)$"), -3, "heads"),
    (re.compile(r".*/mlp/fc1/(kernel|bias|lora/b)$"), -1, "hidden units"),
    (re.compile(r".*/mlp/fc2/(kernel|lora/a)$"), -2, "hidden units"),
)


def parameter_shardings(params: Any, mesh: Mesh, *, policy: Rules = "auto", prefix: str = "") -> Any:
    """Returns a tree of shardings for a tree of parameters.

    Args:
      params: arrays or their shapes.
      mesh: from ``make_mesh``.
      policy: a policy for all, or rules by path (``MeshConfig.parameters``).
      prefix: added to the start of each path before rules are matched.
    """

    def sharding(path: str, leaf: Any) -> NamedSharding:
        path = prefix + path
        return NamedSharding(mesh, _spec(path, leaf.shape, mesh, _policy_of(path, policy)))

    return jax.tree.map(sharding, parameter_paths(params), params)


def update_shardings(params: Any, shardings: Any, *, optimizer: str) -> Any:
    """Returns where each parameter is updated: where it lives, or with ``zero`` split over ``data`` too.

    Args:
      params: arrays or their shapes.
      shardings: of ``params``.
      optimizer: ``MeshConfig.optimizer``.
    """

    def sharding(path: str, leaf: Any, lives: NamedSharding) -> NamedSharding:
        assert isinstance(lives.mesh, Mesh)
        if optimizer != "zero" or "data" in lives.spec:
            return lives
        axes = [*lives.spec, *[None] * (len(leaf.shape) - len(lives.spec))]
        _split_largest(path, leaf.shape, axes, lives.mesh, over="data")
        return NamedSharding(lives.mesh, _without_end(axes))

    return jax.tree.map(sharding, parameter_paths(params), params, shardings)


def _policy_of(path: str, rules: Rules) -> Policy | Spec:
    if isinstance(rules, str):
        return rules
    return next((policy for pattern, policy in rules if re.match(pattern, path)), "auto")


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh, policy: Policy | Spec) -> PartitionSpec:
    axes: list[str | None] = [None] * len(shape)
    if not isinstance(policy, str):
        _check_spec(path, shape, mesh, policy)
        axes = list(policy)
    if policy in ("auto", "tensor"):
        _split_over_tensor(path, shape, axes, mesh, required=policy == "tensor")
    if policy in ("auto", "fsdp"):
        _split_largest(path, shape, axes, mesh, over="fsdp")
    return _without_end(axes)


def _without_end(axes: list[Any]) -> PartitionSpec:
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def _split_over_tensor(
    path: str, shape: tuple[int, ...], axes: list[str | None], mesh: Mesh, *, required: bool
) -> None:
    size = mesh.shape["tensor"]
    for pattern, axis, unit in _MEGATRON:
        if size > 1 and pattern.match(path):
            if shape[axis] % size == 0:
                axes[axis] = "tensor"
            elif required:
                raise ConfigError(
                    f"mesh.tensor={size}: does not divide the {shape[axis]} {unit} of {path}; use a divisor, or "
                    "replicate such arrays with mesh.parameters='auto'"
                )


def _split_largest(path: str, shape: tuple[int, ...], axes: list[Any], mesh: Mesh, *, over: str) -> None:
    """Splits a large array along its largest dimension that is whole."""
    size = mesh.shape[over]
    if size == 1 or math.prod(shape) < FSDP_MIN_SIZE:
        return
    first = 1 if _STACKED.search(path) else 0
    candidates = [
        (dim, axis) for axis, dim in enumerate(shape) if axis >= first and axes[axis] is None and dim % size == 0
    ]
    if candidates:
        _, axis = max(candidates)
        axes[axis] = over


def _check_spec(path: str, shape: tuple[int, ...], mesh: Mesh, spec: Spec) -> None:
    if len(spec) != len(shape):
        raise ConfigError(
            f"mesh.parameters: {spec} has {len(spec)} axes, but {path} has the shape {shape}; give an axis or None for "
            f"each of its {len(shape)} dimensions"
        )
    for dim, axis in zip(shape, spec, strict=True):
        if axis is not None and dim % mesh.shape[axis]:
            raise ConfigError(
                f"mesh.parameters: mesh.{axis}={mesh.shape[axis]} does not divide {dim}, a dimension of {path} with "
                f"the shape {shape}; use another axis there, or None"
            )


def state_shardings(
    state: TrainState,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    augment: Mapping[str, optax.GradientTransformation],
    config: MeshConfig,
) -> Any:
    """Returns a ``TrainState`` of shardings; moments and averages live where their parameters are updated.

    The shardings are explicit, because ``jax.jit(tx.init)`` would put the moments on one device.

    Args:
      state: the training state as shapes.
      tx: the optimizer of the model's parameters.
      mesh: from ``make_mesh``.
      augment: optimizers of the augmentations with parameters, by name; the paths of their parameters start with
        ``augment/NAME/``.
      config: how parameters and what the optimizer keeps of them are split.
    """
    everywhere, policy = replicated(mesh), config.parameters
    prefixes = {name: f"augment/{name}/" for name in state.augment}
    if not isinstance(policy, str):
        _check_matched(policy, state, prefixes)
    params = parameter_shardings(state.params, mesh, policy=policy)
    if policy == "auto" and mesh.shape["tensor"] > 1 and not any("tensor" in s.spec for s in jax.tree.leaves(params)):
        raise ConfigError(
            f"mesh.tensor={mesh.shape['tensor']}: divides neither the heads nor the hidden units of a tower; use a "
            "divisor of them"
        )
    learned = {}
    for name, own in state.augment.items():
        own_params = parameter_shardings(own.params, mesh, policy=policy, prefix=prefixes[name])
        updated = update_shardings(own.params, own_params, optimizer=config.optimizer)
        own_moments = _opt_state_shardings(augment[name], own.opt_state, updated, everywhere)
        learned[name] = AugmentState(params=own_params, opt_state=own_moments)
    updated = update_shardings(state.params, params, optimizer=config.optimizer)
    shardings: dict[str, Any] = {
        "step": everywhere,
        "params": params,
        "opt_state": _opt_state_shardings(tx, state.opt_state, updated, everywhere),
        "ema_params": None if state.ema_params is None else updated,
        "augment": learned,
        "momentum_params": None if state.momentum_params is None else updated,
        "objective": jax.tree.map(lambda leaf: _of_matrix(leaf, mesh), state.objective),
        "gate": jax.tree.map(lambda _: everywhere, state.gate),
    }
    return TrainState(**shardings)


def _of_matrix(leaf: Any, mesh: Mesh) -> NamedSharding:
    """By rows, of a matrix whose rows divide evenly."""
    rows = batch_sharding(mesh)
    return rows if len(leaf.shape) > 1 and leaf.shape[0] % num_shards(rows) == 0 else replicated(mesh)


def _check_matched(rules: tuple[tuple[str, Any], ...], state: TrainState, prefixes: Mapping[str, str]) -> None:
    paths = jax.tree.leaves(parameter_paths(state.params))
    for name, own in state.augment.items():
        paths += [prefixes[name] + path for path in jax.tree.leaves(parameter_paths(own.params))]
    for pattern, _ in rules:
        if not any(re.match(pattern, path) for path in paths):
            starts = ", ".join(sorted({path.split("/")[0] for path in paths}))
            raise ConfigError(f"mesh.parameters: {pattern!r} matches no parameter; paths start with {starts}")


def _opt_state_shardings(
    tx: optax.GradientTransformation, opt_state: Any, params: Any, everywhere: NamedSharding
) -> Any:
    """Returns ``params``, a tree of shardings, for moments, and ``everywhere`` for other values."""

    def is_masked(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)  # in place of the moments of parameters that ``tx`` does not train

    return optax.tree.map_params(
        tx,
        lambda leaf, sharding: leaf if is_masked(leaf) else sharding,
        opt_state,
        params,
        transform_non_params=lambda _: everywhere,
        is_leaf=is_masked,
    )


def batch_shardings(batch: Any, mesh: Mesh) -> Any:
    """Returns a tree that shards each array of a batch by rows."""
    return jax.tree.map(lambda _: batch_sharding(mesh), batch)
