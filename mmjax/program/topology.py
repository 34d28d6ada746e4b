"""AOT topologies: devices that are not attached, their links, and compilation for them."""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax

from mmjax.program.chips import Chip
from mmjax.program.collectives import Collective

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_AMOUNT = r"([\d.]+)([KMGT]?)i?B?"
_OUT_OF_MEMORY = (
    re.compile(rf"\({_AMOUNT}\) exceeds available HBM \({_AMOUNT}\)"),
    re.compile(rf"[Uu]sed {_AMOUNT} of {_AMOUNT} hbm"),
)


class OutOfMemory(Exception):
    """A program needs ``needed`` bytes of device memory, and only ``usable`` are available."""

    def __init__(self, message: str, *, needed: float, usable: float):
        super().__init__(message)
        self.needed = needed
        self.usable = usable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology(abc.ABC):
    """Devices of one kind and the links between them."""

    name: str
    chip: Chip
    devices: tuple[jax.Device, ...]

    @property
    def device(self) -> Chip:
        """Hardware figures of one device."""
        return self.chip.per_device

    @property
    @abc.abstractmethod
    def usable_bytes(self) -> float:
        """Bytes of a device's memory that one program may use."""

    @property
    @abc.abstractmethod
    def links(self) -> dict[str, float]:
        """Published bytes/s that a device sends over each kind of link, in one direction."""

    @property
    def compiler_options(self) -> Mapping[str, bool]:
        """XLA's flags for a compilation."""
        return {}

    @abc.abstractmethod
    def bandwidth(self, groups: Sequence[Sequence[jax.Device]]) -> float:
        """Returns the bytes/s that a device sends to its group in a ring algorithm."""

    @abc.abstractmethod
    def hop_bandwidth(self, pairs: Sequence[Sequence[jax.Device]]) -> float:
        """Returns the bytes/s that a device sends to one other device."""

    def seconds(self, collective: Collective, order: Sequence[jax.Device]) -> float:
        """Returns the time of all executions at full link speed; ``order`` lists the devices of the mesh."""
        groups = [[order[i] for i in group] for group in collective.groups]
        if collective.kind == "collective-permute":
            return collective.times * collective.bytes / self.hop_bandwidth(groups)
        return collective.times * collective.sent / self.bandwidth(groups)


def compile_program(lowered: jax.stages.Lowered, options: Mapping[str, bool] | None = None) -> jax.stages.Compiled:
    """Compiles the program; raises ``OutOfMemory`` if the compiler refuses it for the memory that it needs.

    A program of JAX's compilation cache is taken only if it is of these very source lines, which it names.
    """
    key = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, key)
    jax.config.update(key, True)
    try:
        return lowered.compile(dict(options) if options else None)
    except jax.errors.JaxRuntimeError as error:
        out_of_memory = parse_out_of_memory(str(error))
        if out_of_memory is None:
            raise
        raise out_of_memory from None
    finally:
        jax.config.update(key, before)


def parse_out_of_memory(message: str) -> OutOfMemory | None:
    """Parses the compiler's out-of-memory message; returns None for any other message."""
    for pattern in _OUT_OF_MEMORY:
        match = pattern.search(message)
        if match:
            needed, usable = (float(match[i]) * _UNITS[match[i + 1]] for i in (1, 3))
            return OutOfMemory(message.splitlines()[0], needed=needed, usable=usable)
    return None
