"""AOT topologies of TPUs: a slice of chips, compiled for with libtpu and no TPU attached."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from mmjax.core.config import ConfigError
from mmjax.program.chips import Tpu
from mmjax.program.topology import Topology

_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # otherwise libtpu queries Google Cloud's metadata server and waits for it
    "TPU_WORKER_HOSTNAMES": "localhost",  # libtpu warns if this or the next one is unset, but uses neither here
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuSlice(Topology):
    """A TPU slice with ``sides`` chips along each dimension of its interconnect."""

    chip: Tpu
    sides: tuple[int, ...]
    coordinates: tuple[tuple[int, ...], ...]  # of each device's chip

    @property
    def usable_bytes(self) -> float:
        """Bytes that the compiler lets one program use."""
        return self.chip.per_device.usable_hbm

    @property
    def links(self) -> dict[str, float]:
        """Published bytes/s of one link."""
        return {"link": self.chip.per_device.link_bandwidth}

    def bandwidth(self, groups: Sequence[Sequence[jax.Device]]) -> float:
        """Returns the bytes/s that a device sends to its group, over all dimensions that the group spans.

        A ring uses both directions at once; an open dimension counts as one direction.
        """
        coordinate, link = dict(zip(self.devices, self.coordinates, strict=True)), self.chip.per_device.link_bandwidth
        rate = 0.0
        for dimension, side in enumerate(self.sides):
            if any(len({coordinate[device][dimension] for device in group}) > 1 for group in groups):
                is_ring = side % self.chip.wrap_multiple == 0
                rate += (2 if is_ring else 1) * link
        # Devices of one chip communicate at least as fast as neighboring chips.
        return rate or link

    def hop_bandwidth(self, pairs: Sequence[Sequence[jax.Device]]) -> float:
        """Returns the bytes/s of one link: between neighbors in a ring, in one direction."""
        return self.chip.per_device.link_bandwidth


def make_tpu_slice(name: str, chip: Tpu, sides: tuple[int, ...]) -> TpuSlice:
    """Returns the slice ``name``, such as ``v5e:16x16``.

    Raises:
      ConfigError: there is no such slice, or libtpu is not installed.
    """
    if len(sides) != chip.torus or 0 in sides:
        example = "x".join(["4"] * chip.torus)
        raise ConfigError(
            f"--topology={name}: {chip.name} has an interconnect of {chip.torus} dimensions; write, for example, "
            f"{chip.name}:{example}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"--topology={name}: compiling for TPUs needs libtpu; run: pip install 'mmjax[aot]'")
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    with _as_config_errors(name):
        description = topologies.get_topology_desc(name, platform="tpu", **dict(chip.options))
    devices: tuple[Any, ...] = tuple(description.devices)
    if len(devices) != math.prod(sides) * chip.devices:
        raise ConfigError(
            f"--topology={name}: libtpu creates {len(devices)} devices, not {math.prod(sides) * chip.devices}; its "
            "version does not match the table in mmjax/program/chips.py"
        )
    coordinates = tuple(tuple(device.coords[: len(sides)]) for device in devices)
    return TpuSlice(name=name, chip=chip, sides=sides, devices=devices, coordinates=coordinates)


@contextlib.contextmanager
def _as_config_errors(name: str) -> Iterator[None]:
    """Turns errors of libtpu into ``ConfigError``."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())
        if "lockfile" in text:
            raise ConfigError(
                f"--topology={name}: libtpu is in use by another process and allows only one; wait for it to end "
                "(or set ALLOW_MULTIPLE_LIBTPU_LOAD=1 if neither process uses a TPU)"
            ) from None
        raise ConfigError(f"--topology={name}: libtpu rejects it: {text.removeprefix('INVALID_ARGUMENT: ')}") from None
