"""The device mesh: axes ``data`` (replicas of the model) and ``fsdp`` (its parameters in shards)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.config import ConfigError

BATCH_AXES = ("data", "fsdp")
"""Both axes split the batch; they differ only in what becomes of the parameters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; -1 (at most once) is whatever is left."""

    data: int = -1
    fsdp: int = 1


def make_mesh(config: MeshConfig, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices; axes are Auto, because explicit ones reject ``z @ z.T`` on sharded rows."""
    devices = jax.devices() if devices is None else devices
    sizes = {"data": config.data, "fsdp": config.fsdp}
    free = [name for name, size in sizes.items() if size == -1]
    fixed = 1
    for name, size in sizes.items():
        if size == 0 or size < -1:
            raise ConfigError(f"mesh.{name}={size}: must be positive, or -1 for what is left")
        fixed *= max(size, 1)
    if len(free) > 1:
        raise ConfigError("mesh.data=-1 and mesh.fsdp=-1: only one axis can take what is left; set the other")
    if free:
        if len(devices) % fixed:
            other = next(name for name in sizes if name not in free)
            raise ConfigError(f"mesh.{other}={fixed}: does not divide the {len(devices)} devices here")
        sizes[free[0]] = len(devices) // fixed
    elif fixed != len(devices):
        asked = " x ".join(f"mesh.{name}={size}" for name, size in sizes.items())
        raise ConfigError(f"{asked} is {fixed} devices, but {len(devices)} are here; set one of them to -1")
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, mesh: Mesh, *, path: str) -> None:
    """Raises where the global batch does not divide over the devices."""
    if batch_size % mesh.size:
        lower = batch_size // mesh.size * mesh.size
        near = [str(size) for size in (lower, lower + mesh.size) if size > 0]
        raise ConfigError(
            f"{path}={batch_size}: does not divide over {mesh.size} devices; the nearest that do: {', '.join(near)}"
        )
