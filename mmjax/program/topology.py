"""AOT topologies: devices of a TPU slice, and compilation for them, with no TPU attached."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from mmjax.core.config import ConfigError, nearest
from mmjax.program.chips import CHIPS, Chip
from mmjax.program.costs import Collective

_NAME = re.compile(r"(?P<chip>[a-z0-9]+):(?P<sides>\d+(x\d+)*)$")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_AMOUNT = r"([\d.]+)([KMGT]?)i?B?"
_OUT_OF_MEMORY = (
    re.compile(rf"\({_AMOUNT}\) exceeds available HBM \({_AMOUNT}\)"),
    re.compile(rf"[Uu]sed {_AMOUNT} of {_AMOUNT} hbm"),
)

_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # otherwise libtpu queries Google Cloud's metadata server and waits for it
    "TPU_WORKER_HOSTNAMES": "localhost",  # libtpu warns if this or the next one is unset, but uses neither here
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


class OutOfMemory(Exception):
    """A program needs ``needed`` bytes of device memory, and only ``usable`` are available."""

    def __init__(self, message: str, *, needed: float, usable: float):
        super().__init__(message)
        self.needed = needed
        self.usable = usable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """A TPU slice with ``sides`` chips along each dimension of its interconnect."""

    name: str
    chip: Chip
    sides: tuple[int, ...]
    devices: tuple[jax.Device, ...]
    coordinates: tuple[tuple[int, ...], ...]  # of each device's chip

    @property
    def device(self) -> Chip:
        """Hardware figures of one device."""
        return self.chip.per_device

    def bandwidth(self, groups: Sequence[Sequence[jax.Device]]) -> float:
        """Returns the bytes/s that a device sends to its group, over all dimensions that the group spans.

        A ring uses both directions at once; an open dimension counts as one direction.
        """
        coordinate = dict(zip(self.devices, self.coordinates, strict=True))
        rate = 0.0
        for dimension, side in enumerate(self.sides):
            if any(len({coordinate[device][dimension] for device in group}) > 1 for group in groups):
                is_ring = side % self.chip.wrap_multiple == 0
                rate += (2 if is_ring else 1) * self.device.link_bandwidth
        # Devices of one chip communicate at least as fast as neighboring chips.
        return rate or self.device.link_bandwidth

    def seconds(self, collective: Collective, order: Sequence[jax.Device]) -> float:
        """Returns the time of all executions at full link speed; ``order`` lists the devices of the mesh."""
        groups = [[order[i] for i in group] for group in collective.groups]
        if collective.kind == "collective-permute":  # between neighbors in a ring, in one direction
            return collective.times * collective.bytes / self.device.link_bandwidth
        return collective.times * collective.sent / self.bandwidth(groups)


def make_topology(name: str) -> Topology:
    """Returns the slice ``name``, such as ``v5e:16x16``.

    Raises:
      ConfigError: there is no such slice, or libtpu is not installed.
    """
    match = _NAME.match(name)
    if match is None:
        raise ConfigError(f"--topology={name}: expected GENERATION:SIDExSIDE, such as v5e:16x16 or v5p:4x4x8")
    if match["chip"] not in CHIPS:
        raise ConfigError(f"--topology={name}: no such generation; {nearest(match['chip'], CHIPS)}")
    chip = CHIPS[match["chip"]]
    sides = tuple(int(side) for side in match["sides"].split("x"))
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
    return Topology(name=name, chip=chip, sides=sides, devices=devices, coordinates=coordinates)


def compile_program(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles the program; raises ``OutOfMemory`` if it does not fit into a device's memory."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        out_of_memory = parse_out_of_memory(str(error))
        if out_of_memory is None:
            raise
        raise out_of_memory from None


def parse_out_of_memory(message: str) -> OutOfMemory | None:
    """Parses the compiler's out-of-memory message; returns None for any other message."""
    for pattern in _OUT_OF_MEMORY:
        match = pattern.search(message)
        if match:
            needed, usable = (float(match[i]) * _UNITS[match[i + 1]] for i in (1, 3))
            return OutOfMemory(message.splitlines()[0], needed=needed, usable=usable)
    return None


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
