"""The device mesh and its axes: ``data`` (replicas), ``fsdp`` (sharded parameters), ``tensor`` (split matmuls)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Literal

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.core.config import ConfigError
from mmjax.core.row_sharding import num_shards

BATCH_AXES = ("data", "fsdp")
"""Axes that split the batch. They differ only in how parameters are sharded; along ``tensor`` rows are replicated."""

Axis = Literal["data", "fsdp", "tensor"]
Policy = Literal["auto", "replicated", "fsdp", "tensor"]
Spec = tuple[Axis | None, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Number of devices along each mesh axis.

    Args:
      data: replicas of the model; -1 (for one axis at most) takes the remaining devices.
      fsdp: shards of the parameters, as in fully sharded data parallelism.
      tensor: shards of attention heads and of MLP hidden units.
      parameters: how parameters, their moments and averages are sharded: a policy of ``sharding.py``, or a list of
        rules. A rule is a pair of a regular expression over parameter paths (``visual/blocks/attn/query/kernel``,
        ``augment/lemda/…``) and a policy or one axis (or None) per dimension. The first rule that matches from the
        start of the path applies; without a match the policy is ``auto``.
      optimizer: ``parameters`` keeps moments and averages as their parameters; ``zero`` also splits them over ``data``
        (ZeRO, stages 1 and 2).
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    parameters: Policy | tuple[tuple[str, Policy | Spec], ...] = "auto"
    optimizer: Literal["parameters", "zero"] = "parameters"

    def __post_init__(self) -> None:
        for pattern, spec in () if isinstance(self.parameters, str) else self.parameters:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"mesh.parameters={pattern!r}: not a regular expression ({error})") from None
            axes = () if isinstance(spec, str) else [axis for axis in spec if axis is not None]
            if len(set(axes)) < len(axes):
                raise ConfigError(f"mesh.parameters: {spec} of {pattern!r} names an axis twice; name each axis once")


def make_mesh(config: MeshConfig, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh over ``devices`` (default: all devices), with the axes ``data``, ``fsdp`` and ``tensor``.

    The axis types are Auto, because explicit sharding rejects ``z @ z.T`` on row-sharded arrays.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    for name, size in sizes.items():
        if size == 0 or size < -1:
            raise ConfigError(f"mesh.{name}={size}: must be positive, or -1 for the remaining devices")
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size > 0)
    if len(free) > 1:
        listed = " and ".join(f"mesh.{name}=-1" for name in free)
        others = "other" if len(free) == 2 else "others"
        raise ConfigError(f"{listed}: only one axis can take the remaining devices; set the {others}")
    listed = " x ".join(f"mesh.{name}={size}" for name, size in sizes.items() if name not in free)
    if free:
        if len(devices) % fixed:
            listed = " x ".join(f"mesh.{name}={size}" for name, size in sizes.items() if size > 1)
            raise ConfigError(f"{listed}: does not divide the {len(devices)} devices here")
        sizes[free[0]] = len(devices) // fixed
    elif fixed != len(devices):
        raise ConfigError(f"{listed} is {fixed} devices, but there are {len(devices)}; set one of them to -1")
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows are split over ``data`` and ``fsdp`` and replicated over ``tensor``."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that keeps the whole value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh: Mesh, *, path: str) -> None:
    """Raises ``ConfigError`` for the key ``path`` if the global batch does not divide over the row shards."""
    shards = num_shards(batch_sharding(mesh))
    if batch_size % shards:
        lower = batch_size // shards * shards
        nearest = ", ".join(str(size) for size in (lower, lower + shards) if size > 0)
        divisor = f"{shards} devices" if shards == mesh.size else f"the {shards} shards of mesh.data x mesh.fsdp"
        raise ConfigError(f"{path}={batch_size}: does not divide over {divisor}; the nearest that do: {nearest}")
