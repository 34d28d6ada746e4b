"""Costs of one step per device, from a compiled program: matmul FLOPs, memory traffic and collectives."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Literal, get_args

import numpy as np

from mmjax.program.hlo import Array, Computation, Executed, Instruction, Module

CollectiveKind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"]
COLLECTIVE_KINDS: tuple[CollectiveKind, ...] = get_args(CollectiveKind)

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "opt-barrier", "partition-id", "replica-id", "iota", "async-start", "async-update",
}  # fmt: skip
"""Opcodes that move no bytes themselves."""

_TRANSPARENT = ("bitcast", "reshape", "convert")
_ALIASED = re.compile(r"\{(\d*)\}: \((\d+), \{\}\)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of the program; ``bytes`` is the size of the whole value that one execution produces or splits."""

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
    result = []
    for executed in module.executed():
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
        result.append(
            Collective(kind=kind, bytes=total, times=executed.times, groups=parse_groups(one.rest, devices=devices))
        )
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
    axes ``mesh['a'=2,'b'=4] {'b'}``, where an axis may be split: ``'b':(2)2``.
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
    by_axes = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text)
    if by_axes:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", by_axes[1])}
        entries = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", by_axes[2])
        used = {name: (before, size) for name, before, size in entries}
        shape, group_axes = [], []
        for name, size in sizes.items():
            before, inner = used.get(name, ("", ""))
            split = [int(before), int(inner), size // (int(before) * int(inner))] if inner else [1, size, 1]
            group_axes += [len(shape) + 1] if name in used else []
            shape += split
        rest = [axis for axis in range(len(shape)) if axis not in group_axes]
        ids = np.arange(math.prod(shape)).reshape(shape).transpose(rest + group_axes)
        return _rows(ids.reshape(-1, math.prod(shape[axis] for axis in group_axes)))
    return (tuple(range(devices)),)


def _rows(ids: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in ids.tolist())


def mesh_axes(collective: Collective, mesh: Mapping[str, int]) -> str:
    """Returns the mesh axes along which the devices of a group differ, such as ``data+fsdp``."""
    sizes = tuple(mesh.values())
    indices = [np.stack(np.unravel_index(np.array(group), sizes)) for group in collective.groups]
    differ = [any(len(set(index[axis].tolist())) > 1 for index in indices) for axis in range(len(sizes))]
    return "+".join(name for name, differs in zip(mesh, differ, strict=True) if differs) or "none"


def flops(module: Module) -> float:
    """Returns the FLOPs of matmuls and convolutions, 2 per multiply-add; other operations are negligible."""
    total = 0
    for executed in module.executed():
        one, within = executed.instruction, executed.computation
        if one.opcode == "dot":
            left = within.arrays(one.operands[0])[0]
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
            inner = math.prod(left.dims[int(i)] for i in contracted[1].split(",") if i) if contracted else 1
            total += executed.times * 2 * math.prod(one.arrays[0].dims) * inner
        elif one.opcode == "convolution":
            total += executed.times * 2 * _multiply_adds(one, within)
    return float(total)


def _multiply_adds(one: Instruction, within: Computation) -> int:
    """Counts multiply-adds inside the input: TPU programs write batched matmuls as mostly padded convolutions."""
    kernel = within.arrays(one.operands[1])[0]
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    assert labels is not None
    out = dict(zip(labels[3], one.arrays[0].dims, strict=True))
    image = dict(zip(labels[1], within.arrays(one.operands[0])[0].dims, strict=True))
    weights = dict(zip(labels[2], kernel.dims, strict=True))
    window = re.search(r"window=\{([^}]*)\}", one.rest)
    attributes = dict(entry.split("=") for entry in window[1].split()) if window else {}
    product = out["b"] * out["f"] * weights["i"]
    spatial = sorted(label for label in out if label.isdigit())
    for axis, label in enumerate(spatial):
        padding = attributes.get("pad", "x".join(["0_0"] * len(spatial))).split("x")[axis]
        low = int(padding.partition("_")[0])  # the high padding follows from the sizes
        stride, dilate, kernel_dilate = (
            int(attributes[name].split("x")[axis]) if name in attributes else 1
            for name in ("stride", "lhs_dilate", "rhs_dilate")
        )
        starts = np.arange(out[label])[:, None] * stride - low
        positions = starts + np.arange(weights[label])[None, :] * kernel_dilate
        inside = (positions >= 0) & (positions <= (image[label] - 1) * dilate) & (positions % dilate == 0)
        product *= int(inside.sum())
    return product // int(_attribute(one.rest, "batch_group_count") or 1)


def _attribute(text: str, name: str) -> str | None:
    match = re.search(rf"\b{name}=(\d+)", text)
    return match[1] if match else None


def memory_bytes(module: Module) -> float:
    """Returns the bytes read from and written to a device's main memory (HBM), summed over fusions.

    Of an array that is sliced, only the slice counts.
    """
    total = 0
    for executed in module.executed():
        if not executed.fused:
            total += executed.times * _hbm_traffic(module, executed)
    return float(total)


def _hbm_traffic(module: Module, executed: Executed) -> int:
    one, within = executed.instruction, executed.computation
    if one.opcode in _FREE or one.opcode.endswith("-done") or "AllocateBuffer" in one.rest:
        return 0
    operands = [within.arrays(name) for name in one.operands]
    if one.opcode == "copy-start":
        return _hbm_size(one.arrays[:1]) + _hbm_size(operands[0])
    if one.opcode.endswith("-start"):  # a slice or collective: the value is its operands, results and flags
        results = one.arrays[len(operands) : 2 * len(operands)]
        return _hbm_size(results) + sum(
            _size([result]) for result, a in zip(results, operands, strict=False) if _hbm_size(a)
        )
    if one.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * _hbm_size(one.arrays)
    if one.opcode == "dynamic-update-slice":
        return 2 * _hbm_size(operands[1])
    if one.opcode != "fusion":
        return _hbm_size(one.arrays) + sum(map(_hbm_size, operands))
    inner = module.computations[one.called("calls")[0]]
    outputs, aliased = list(one.arrays), set[int]()
    for output, operand in _ALIASED.findall(one.rest):  # buffers of a collective that overlaps with the fusion
        aliased.add(int(operand))
        outputs[int(output or 0)] = Array("token", (), 0)
    traffic = _hbm_size(outputs)
    in_place = _in_place_updates(inner)
    for name in in_place:
        whole = inner.by_name[name]
        if _hbm_size(outputs) and _hbm_size(whole.arrays):
            traffic += _size(inner.arrays(whole.operands[1])) - _hbm_size(whole.arrays)
    for number, arrays in enumerate(operands):
        if _hbm_size(arrays) and number not in aliased:
            traffic += min(_bytes_of_parameter(module, inner, number, in_place), _hbm_size(arrays))
    return max(traffic, 0)


def _in_place_updates(inner: Computation) -> set[str]:
    """Returns the names of slice updates that a fusion ends with; the rest of their array is not copied."""
    ends = [inner.root.name] if inner.root.opcode != "tuple" else list(inner.root.operands)
    updates = set()
    for name in ends:
        while inner.by_name[name].opcode in _TRANSPARENT:
            name = inner.by_name[name].operands[0]
        if inner.by_name[name].opcode == "dynamic-update-slice":
            updates.add(name)
    return updates


def _bytes_of_parameter(module: Module, inner: Computation, number: int, in_place: Set[str] = frozenset()) -> int:
    """Returns the bytes that a fusion reads of its parameter ``number``."""
    for one in inner:
        if one.opcode == "parameter" and int(one.literal) == number:
            return _bytes_read(module, inner, one, in_place)
    return 0


def _bytes_read(module: Module, inner: Computation, value: Instruction, in_place: Set[str]) -> int:
    total = 0
    for user in inner:
        if value.name not in user.operands:
            continue
        first = user.operands[0] == value.name
        if user.opcode in ("dynamic-slice", "gather", "slice") and first:
            total += _size(user.arrays)
        elif user.opcode in _TRANSPARENT:
            total += _bytes_read(module, inner, user, in_place)
        elif user.opcode == "fusion":
            within = module.computations[user.called("calls")[0]]
            total += _bytes_of_parameter(module, within, user.operands.index(value.name))
        elif not (user.name in in_place and first):
            return _size(value.arrays)
    return total


def _size(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays)


def _hbm_size(arrays: Iterable[Array]) -> int:
    return _size(array for array in arrays if array.space == 0)


def group_by_kind(items: Sequence[Collective], mesh: Mapping[str, int]) -> list[tuple[str, str, list[Collective]]]:
    """Groups collectives by kind and mesh axes; returns (kind, axes, collectives), the most bytes sent first."""

    def key(one: Collective) -> tuple[str, str]:
        return one.kind, mesh_axes(one, mesh)

    rows = [(kind, axes, list(group)) for (kind, axes), group in itertools.groupby(sorted(items, key=key), key=key)]
    return sorted(rows, key=lambda row: -sum(one.times * one.sent for one in row[2]))
