"""The device mesh: ``data`` (replicas of the model), ``fsdp`` (its parameters in shards), ``tensor`` (its products)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.core.config import ConfigError
from mmjax.core.row_sharding import num_shards

BATCH_AXES = ("data", "fsdp")
"""Both axes split the batch; they differ only in what becomes of the parameters. ``tensor`` has copies of its rows."""

Axis = Literal["data", "fsdp", "tensor"]
Policy = Literal["auto", "replicated", "fsdp", "tensor"]
Spec = tuple[Axis | None, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; -1 (at most once) is whatever is left.

    ``parameters`` says over which of them parameters are split, with their moments and averages: a policy (see
    ``sharding.py``), or pairs of a regular expression over parameter paths (``visual/blocks/attn/query/kernel``,
    ``augment/lemda/…``) and a policy or an axis (or None) for each dimension. The first that matches from the start
    counts, and what none matches is ``auto``.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    parameters: Policy | tuple[tuple[str, Policy | Spec], ...] = "auto"

    def __post_init__(self) -> None:
        for pattern, spec in () if isinstance(self.parameters, str) else self.parameters:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"mesh.parameters={pattern!r}: not a regular expression ({error})") from None
            named = () if isinstance(spec, str) else [axis for axis in spec if axis is not None]
            if len(set(named)) < len(named):
                raise ConfigError(f"mesh.parameters: {spec} of {pattern!r} names an axis twice; name each once")


def make_mesh(config: MeshConfig, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices; axes are Auto, because explicit ones reject ``z @ z.T`` on sharded rows."""
    devices = jax.devices() if devices is None else devices
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    for name, size in sizes.items():
        if size == 0 or size < -1:
            raise ConfigError(f"mesh.{name}={size}: must be positive, or -1 for what is left")
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size > 0)
    if len(free) > 1:
        asked = " and ".join(f"mesh.{name}=-1" for name in free)
        raise ConfigError(f"{asked}: only one axis can take what is left; set the other{'s' * (len(free) > 2)}")
    asked = " x ".join(f"mesh.{name}={size}" for name, size in sizes.items() if name not in free)
    if free:
        if len(devices) % fixed:
            asked = " x ".join(f"mesh.{name}={size}" for name, size in sizes.items() if size > 1)
            raise ConfigError(f"{asked}: does not divide the {len(devices)} devices here")
        sizes[free[0]] = len(devices) // fixed
    elif fixed != len(devices):
        raise ConfigError(f"{asked} is {fixed} devices, but {len(devices)} are here; set one of them to -1")
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all devices, but for ``tensor``, along which there are copies."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, mesh: Mesh, *, path: str) -> None:
    """Raises where the global batch does not divide over the devices that split it."""
    shards = num_shards(batch_sharding(mesh))
    if batch_size % shards:
        lower = batch_size // shards * shards
        near = ", ".join(str(size) for size in (lower, lower + shards) if size > 0)
        over = f"{shards} devices" if shards == mesh.size else f"the {shards} shares of mesh.data x mesh.fsdp"
        raise ConfigError(f"{path}={batch_size}: does not divide over {over}; the nearest that do: {near}")


def share_of(process: int, rows: NamedSharding) -> tuple[int, int]:
    """Which of how many equal shares of a batch's rows ``process`` has to make: those that its devices hold.

    A tensor axis across processes gives several of them the same share. Where a share's rows are not neighbours,
    the batch is that of other meshes in another order.
    """
    held: dict[int, set[int]] = {}
    places: Mapping[Any, Any] = rows.devices_indices_map((num_shards(rows),))
    for device, (place,) in places.items():
        held.setdefault(device.process_index, set()).add(place.indices(num_shards(rows))[0])
    return _share(process, held)


def _share(process: int, held: Mapping[int, set[int]]) -> tuple[int, int]:
    """From the shards that each process holds."""
    shares = sorted({tuple(sorted(shards)) for shards in held.values()})
    total = sum(map(len, shares))
    if total > len(set().union(*shares)) or len({len(share) for share in shares}) > 1:
        raise ConfigError(
            f"mesh: {len(held)} processes would hold rows of the batch that overlap in part or are not equally many; "
            "let mesh.tensor divide the devices of a process, or be a multiple of them"
        )
    return shares.index(tuple(sorted(held[process]))), len(shares)
