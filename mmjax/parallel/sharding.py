"""Where parameters and optimizer state live: a policy over paths and shapes, the model untouched.

``fsdp``
    every large array is split over that axis along its largest dimension (of equal ones the last).
``tensor``
    Megatron's split (Shoeybi et al. 2019, arXiv:1909.08053) over that axis: attention by its heads, an MLP by its
    hidden units, so that each of the two needs one sum over the axis. Everything else is whole.
``auto``
    both: ``tensor`` where it applies, then ``fsdp`` along the largest dimension that is left. Attention (an MLP)
    whose heads (hidden units) ``tensor`` does not divide is whole over that axis.
``replicated``
    everything is whole on every device.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.core.config import ConfigError
from mmjax.core.state import AugmentState, TrainState
from mmjax.parallel.mesh import Policy, Spec, batch_sharding, replicated
from mmjax.train.optim import parameter_paths

Parameters = Policy | tuple[tuple[str, Policy | Spec], ...]

FSDP_MIN_SIZE = 2**14
"""Arrays of fewer elements stay whole: gathering them costs more in latency than they take in memory."""

_STACKED = re.compile(r"(^|/)blocks/")  # their first axis counts the layers, which a loop takes one by one
_MEGATRON = (  # of which parameters ``tensor`` splits which axis; from the end, as blocks have one more in front
    (re.compile(r".*/attn/(query|key|value)/(kernel|bias)$"), -2, "heads"),
    (re.compile(r".*/attn/out/kernel$"), -3, "heads"),
    (re.compile(r".*/mlp/fc1/(kernel|bias)$"), -1, "hidden units"),
    (re.compile(r".*/mlp/fc2/kernel$"), -2, "hidden units"),
)


def parameter_shardings(params: Any, mesh: Mesh, *, policy: Parameters = "auto", prefix: str = "") -> Any:
    """For each array its sharding; ``prefix`` stands before the paths that rules of ``policy`` are matched with."""

    def place(path: str, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, _spec(prefix + path, leaf.shape, mesh, _chosen(prefix + path, policy)))

    return jax.tree.map(place, parameter_paths(params), params)


def _chosen(path: str, policy: Parameters) -> Policy | Spec:
    if isinstance(policy, str):
        return policy
    return next((chosen for pattern, chosen in policy if re.match(pattern, path)), "auto")


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh, policy: Policy | Spec) -> PartitionSpec:
    axes: list[str | None] = [None] * len(shape)
    if not isinstance(policy, str):
        _check(path, shape, mesh, policy)
        axes = list(policy)
    if policy in ("auto", "tensor"):
        _split_heads(path, shape, axes, mesh, asked=policy == "tensor")
    if policy in ("auto", "fsdp"):
        _split_largest(path, shape, axes, mesh)
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def _split_heads(path: str, shape: tuple[int, ...], axes: list[str | None], mesh: Mesh, *, asked: bool) -> None:
    size = mesh.shape["tensor"]
    for pattern, axis, parts in _MEGATRON:
        if size > 1 and pattern.match(path):
            if shape[axis] % size == 0:
                axes[axis] = "tensor"
            elif asked:
                raise ConfigError(
                    f"mesh.tensor={size}: does not divide the {shape[axis]} {parts} of {path}; take a divisor, or "
                    "leave such parts whole with mesh.parameters='auto'"
                )


def _split_largest(path: str, shape: tuple[int, ...], axes: list[str | None], mesh: Mesh) -> None:
    size = mesh.shape["fsdp"]
    elements = 1
    for dim in shape:
        elements *= dim
    if size == 1 or elements < FSDP_MIN_SIZE:
        return
    first = 1 if _STACKED.search(path) else 0
    candidates = [
        (dim, axis) for axis, dim in enumerate(shape) if axis >= first and axes[axis] is None and dim % size == 0
    ]
    if candidates:
        _, axis = max(candidates)
        axes[axis] = "fsdp"


def _check(path: str, shape: tuple[int, ...], mesh: Mesh, spec: Spec) -> None:
    if len(spec) != len(shape):
        raise ConfigError(
            f"mesh.parameters: {spec} has {len(spec)} axes and {path} the shape {shape}; give an axis or None for "
            f"each of its {len(shape)} dimensions"
        )
    for dim, axis in zip(shape, spec, strict=True):
        if axis is not None and dim % mesh.shape[axis]:
            raise ConfigError(
                f"mesh.parameters: mesh.{axis}={mesh.shape[axis]} does not divide {dim}, a dimension of {path} with "
                f"the shape {shape}; name another axis there, or None"
            )


def state_shardings(
    state: TrainState,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    augment: Mapping[str, optax.GradientTransformation],
    policy: Parameters = "auto",
) -> Any:
    """A training state of shardings for one of shapes; moments and averages follow their parameters.

    ``tx`` and, for each augmentation that learns, ``augment`` made the moments. Paths of an augmentation's
    parameters begin with ``augment/NAME/``.
    Explicit, because ``jax.jit(tx.init)`` alone would put the moments on one device.
    """
    whole = replicated(mesh)
    prefixes = {name: f"augment/{name}/" for name in state.augment}
    if not isinstance(policy, str):
        _check_matched(policy, state, prefixes)
    params = parameter_shardings(state.params, mesh, policy=policy)
    if policy == "auto" and mesh.shape["tensor"] > 1 and not any("tensor" in s.spec for s in jax.tree.leaves(params)):
        raise ConfigError(
            f"mesh.tensor={mesh.shape['tensor']}: divides neither the heads nor the hidden units of a tower; take a "
            "divisor of them"
        )
    learned = {}
    for name, own in state.augment.items():
        inner = parameter_shardings(own.params, mesh, policy=policy, prefix=prefixes[name])
        learned[name] = AugmentState(params=inner, opt_state=_follow(augment[name], own.opt_state, inner, whole))
    places: dict[str, Any] = {
        "step": whole,
        "params": params,
        "opt_state": _follow(tx, state.opt_state, params, whole),
        "average": None if state.average is None else params,
        "augment": learned,
    }
    return TrainState(**places)


def _check_matched(rules: tuple[tuple[str, Any], ...], state: TrainState, prefixes: Mapping[str, str]) -> None:
    paths = jax.tree.leaves(parameter_paths(state.params))
    for name, own in state.augment.items():
        paths += [prefixes[name] + path for path in jax.tree.leaves(parameter_paths(own.params))]
    for pattern, _ in rules:
        if not any(re.match(pattern, path) for path in paths):
            some = ", ".join(sorted({path.split("/")[0] for path in paths}))
            raise ConfigError(f"mesh.parameters: {pattern!r} matches no parameter; paths start with {some}")


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
