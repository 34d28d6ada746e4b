"""TPU slices that are not there: their devices, and programs compiled for them."""

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
_TOO_LARGE = (
    re.compile(rf"\({_AMOUNT}\) exceeds available HBM \({_AMOUNT}\)"),
    re.compile(rf"[Uu]sed {_AMOUNT} of {_AMOUNT} hbm"),
)

_NOT_ON_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # or libtpu asks Google Cloud's metadata server who it is, and waits
    "TPU_WORKER_HOSTNAMES": "localhost",  # it complains where it does not know these two, and uses neither here
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


class TooLarge(Exception):
    """A program that does not fit: ``needed`` bytes, of which ``usable`` are there; of what, the message says."""

    def __init__(self, message: str, *, needed: float, usable: float):
        super().__init__(message)
        self.needed = needed
        self.usable = usable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """A slice: ``sides`` chips along each dimension of its interconnect, as ``devices`` that programs compile for."""

    name: str
    chip: Chip
    sides: tuple[int, ...]
    devices: tuple[jax.Device, ...]
    places: tuple[tuple[int, ...], ...]  # of the devices' chips

    @property
    def device(self) -> Chip:
        """The figures of one device."""
        return self.chip.each

    def bandwidth(self, groups: Sequence[Sequence[jax.Device]]) -> float:
        """Bytes/s that a device sends to others of its group, over all dimensions along which the group extends.

        A dimension that closes to a ring carries both directions at once, an open one as much as one direction.
        """
        place = dict(zip(self.devices, self.places, strict=True))
        rate = 0.0
        for dimension, side in enumerate(self.sides):
            if any(len({place[device][dimension] for device in group}) > 1 for group in groups):
                closed = side % self.chip.wraps == 0
                rate += (2 if closed else 1) * self.device.link_bandwidth
        # Devices of one chip reach each other at least as fast as they reach a neighbour.
        return rate or self.device.link_bandwidth

    def seconds(self, collective: Collective, order: Sequence[jax.Device]) -> float:
        """Of all executions, at the full speed of the links; ``order`` is the mesh's."""
        groups = [[order[i] for i in group] for group in collective.groups]
        if collective.kind == "collective-permute":  # neighbours in a ring, one way
            return collective.times * collective.bytes / self.device.link_bandwidth
        return collective.times * collective.sent / self.bandwidth(groups)


def topology(name: str) -> Topology:
    """The slice ``name``, as ``v5e:16x16``; raises where there is none, or nothing to compile for it with."""
    match = _NAME.match(name)
    if match is None:
        raise ConfigError(f"--topology={name}: expected GENERATION:SIDExSIDE, as v5e:16x16 or v5p:4x4x8")
    if match["chip"] not in CHIPS:
        raise ConfigError(f"--topology={name}: no such generation; {nearest(match['chip'], CHIPS)}")
    chip = CHIPS[match["chip"]]
    sides = tuple(int(side) for side in match["sides"].split("x"))
    if len(sides) != chip.torus or 0 in sides:
        example = "x".join(["4"] * chip.torus)
        raise ConfigError(
            f"--topology={name}: chips of {chip.name} are wired in {chip.torus} dimensions; write it as "
            f"{chip.name}:{example}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"--topology={name}: compiling for TPUs needs libtpu; run: pip install 'mmjax[aot]'")
    for key, value in _NOT_ON_A_TPU.items():
        os.environ.setdefault(key, value)
    with _explained(name):
        found = topologies.get_topology_desc(name, platform="tpu", **dict(chip.options))
    devices: tuple[Any, ...] = tuple(found.devices)
    if len(devices) != math.prod(sides) * chip.devices:
        raise ConfigError(
            f"--topology={name}: libtpu makes {len(devices)} devices of it, not {math.prod(sides) * chip.devices}; "
            "its version and this one's table of chips disagree"
        )
    places = tuple(tuple(device.coords[: len(sides)]) for device in devices)
    return Topology(name=name, chip=chip, sides=sides, devices=devices, places=places)


def compile_for_slice(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The program; raises ``TooLarge`` where a device's memory does not hold it."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        too_large = parse_too_large(str(error))
        if too_large is None:
            raise
        raise too_large from None


def parse_too_large(message: str) -> TooLarge | None:
    """What the compiler says where memory does not suffice; None where it says something else."""
    for pattern in _TOO_LARGE:
        match = pattern.search(message)
        if match:
            needed, usable = (float(match[i]) * _UNITS[match[i + 1]] for i in (1, 3))
            return TooLarge(message.splitlines()[0], needed=needed, usable=usable)
    return None


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """libtpu's errors as ours."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())
        if "lockfile" in text:
            raise ConfigError(
                f"--topology={name}: another process uses libtpu, which serves one at a time; wait for it to end "
                "(or set ALLOW_MULTIPLE_LIBTPU_LOAD=1 where neither of the two uses a TPU)"
            ) from None
        raise ConfigError(
            f"--topology={name}: libtpu cannot make it: {text.removeprefix('INVALID_ARGUMENT: ')}"
        ) from None
