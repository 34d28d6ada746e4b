"""Collectives of a compiled program: bytes, groups of devices, and the mesh axes that they run along."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from mmjax.program.hlo import Executed, Module

CollectiveKind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"]
COLLECTIVE_KINDS: tuple[CollectiveKind, ...] = get_args(CollectiveKind)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of the program; ``bytes`` is the size of the whole value that one execution produces or splits."""

    name: str  # of the instruction that runs it, or that starts it
    kind: CollectiveKind
    bytes: int
    times: int
    groups: tuple[tuple[int, ...], ...]  # device numbers in the order of the mesh; for a permute, its pairs

    @property
    def size(self) -> int:
        """Number of devices in a group."""
        return max(map(len, self.groups), default=1)

    @property
    def sent(self) -> float:
        """Bytes that a device sends in one execution of a ring algorithm.

        2(n-1)/n of ``bytes`` for an all-reduce, (n-1)/n for other kinds.
        """
        if self.kind == "collective-permute":
            return float(self.bytes)
        return (2 if self.kind == "all-reduce" else 1) * self.bytes * (self.size - 1) / self.size


def collectives(module: Module, *, devices: int) -> list[Collective]:
    """Returns the collectives of a module; an asynchronous one counts once.

    Args:
      module: the parsed program.
      devices: number of devices that the program runs on.
    """
    result, name = [], ""
    for executed in module.executed():
        name = name if executed.fused else executed.instruction.name
        kind = _kind(executed)
        if kind is None:
            continue
        one = executed.instruction
        operands = [a for name in one.operands for a in executed.computation.arrays(name)]
        values = operands if kind in ("reduce-scatter", "all-to-all") else list(one.arrays)
        if kind == "all-reduce" and one.opcode.endswith("-start"):
            values = operands
        elif one.opcode.endswith("-start"):  # the value is the operands, the results and flags
            values = list(one.arrays[len(operands) : 2 * len(operands)])
        if executed.fused and kind == "reduce-scatter":  # appears as an all-reduce and a slice of its value
            values = list(one.arrays)
        total = sum(array.bytes for array in values)
        groups = parse_groups(one.rest, devices=devices)
        result.append(Collective(name=name, kind=kind, bytes=total, times=executed.times, groups=groups))
    return result


def _kind(executed: Executed) -> CollectiveKind | None:
    opcode, within = executed.instruction.opcode.removesuffix("-start"), executed.computation
    if opcode not in COLLECTIVE_KINDS:
        return None
    if executed.fused:
        # TPU programs have fusions for the start of a collective, the overlapped computation and the end; all name it.
        targets = "".join(i.rest for i in within if i.opcode == "custom-call")
        if "AsyncCollectiveDone" in targets:
            return None
        if within.name.startswith("async_collective_fusion") and "AsyncCollectiveStart" not in targets:
            return None
        if within.name.startswith("all-reduce-scatter"):
            return "reduce-scatter"
    return opcode


def parse_groups(text: str, *, devices: int) -> tuple[tuple[int, ...], ...]:
    """Returns the groups of devices that communicate, parsed from an instruction's attributes.

    HLO has four notations: lists ``{{0,1},{2,3}}``, pairs that look the same, iota ``[2,4]<=[4,2]T(1,0)``, and mesh
    axes ``mesh['a'=2,'b'=4] {'b'}``, where an axis may be split, ``'b':(2)2``, and devices in another order than their
    numbers', ``mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}``.
    """
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})?\}", text)
    if listed:
        if not listed[1]:
            return (tuple(range(devices)),)
        return tuple(tuple(int(i) for i in group.split(",")) for group in re.findall(r"\{([\d,]+)\}", listed[1]))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        shape, dims, order = (None if g is None else [int(i) for i in g.split(",")] for g in iota.groups())
        assert shape is not None and dims is not None
        ids = np.arange(math.prod(dims)).reshape(dims)
        return _rows((ids if order is None else ids.transpose(order)).reshape(shape))
    by_axes = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S*)\))? \{([^}]*)\}", text)
    if by_axes:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", by_axes[1])}
        entries = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", by_axes[3])
        used = {name: (before, size) for name, before, size in entries}
        shape, group_axes = [], []
        for name, size in sizes.items():
            before, inner = used.get(name, ("", ""))
            split = [int(before), int(inner), size // (int(before) * int(inner))] if inner else [1, size, 1]
            group_axes += [len(shape) + 1] if name in used else []
            shape += split
        rest = [axis for axis in range(len(shape)) if axis not in group_axes]
        ids = _device_ids(by_axes[2], devices=math.prod(shape)).reshape(shape).transpose(rest + group_axes)
        return _rows(ids.reshape(-1, math.prod(shape[axis] for axis in group_axes)))
    return (tuple(range(devices)),)


def _device_ids(text: str | None, *, devices: int) -> np.ndarray:
    """The devices of a mesh in its order: a list ``0,2,1,3``, or a transposed iota ``[2,2]T(1,0)``."""
    if not text:
        return np.arange(devices)
    dims, _, order = text.partition("T")
    values = [int(i) for i in re.findall(r"\d+", dims)]
    if not dims.startswith("["):
        return np.array(values)
    return np.arange(devices).reshape(values).transpose([int(i) for i in re.findall(r"\d+", order)] or None)


def _rows(ids: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in ids.tolist())


def mesh_axes(collective: Collective, mesh: Mapping[str, int]) -> str:
    """Returns the mesh axes along which the devices of a group differ, such as ``data+fsdp``."""
    sizes = tuple(mesh.values())
    indices = [np.stack(np.unravel_index(np.array(group), sizes)) for group in collective.groups]
    differ = [any(len(set(index[axis].tolist())) > 1 for index in indices) for axis in range(len(sizes))]
    return "+".join(name for name, differs in zip(mesh, differ, strict=True) if differs) or "none"


def group_by_kind(items: Sequence[Collective], mesh: Mapping[str, int]) -> list[tuple[str, str, list[Collective]]]:
    """Groups collectives by kind and mesh axes; returns (kind, axes, collectives), the most bytes sent first."""

    def key(one: Collective) -> tuple[str, str]:
        return one.kind, mesh_axes(one, mesh)

    rows = [(kind, axes, list(group)) for (kind, axes), group in itertools.groupby(sorted(items, key=key), key=key)]
    return sorted(rows, key=lambda row: -sum(one.times * one.sent for one in row[2]))
