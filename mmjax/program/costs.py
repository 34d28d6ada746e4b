"""What one step of a compiled program costs a device: FLOPs of matrix products, bytes of memory and of collectives."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Literal, get_args

import numpy as np

from mmjax.program.hlo import Array, Computation, Executed, Instruction, Module

Kind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "opt-barrier", "partition-id", "replica-id", "iota", "async-start", "async-update",
}  # fmt: skip
"""What moves no bytes itself."""

_LOOKED_THROUGH = ("bitcast", "reshape", "convert")
_ALIASED = re.compile(r"\{(\d*)\}: \((\d+), \{\}\)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of the program: ``bytes`` is the whole value it makes or takes apart, of one execution."""

    kind: Kind
    bytes: int
    times: int
    groups: tuple[tuple[int, ...], ...]  # of devices in the mesh's order; for a permute, its pairs

    @property
    def size(self) -> int:
        """Devices that take part together."""
        return max(map(len, self.groups), default=1)

    @property
    def sent(self) -> float:
        """Bytes that a device sends in one execution, by rings: 2(n-1)/n of an all-reduce, (n-1)/n of the others."""
        if self.kind == "collective-permute":
            return float(self.bytes)
        return (2 if self.kind == "all-reduce" else 1) * self.bytes * (self.size - 1) / self.size


def collectives(module: Module, *, devices: int) -> list[Collective]:
    """All of them; one that is started and finished apart, or runs beside a computation, counts once."""
    found = []
    for executed in module.executed():
        kind = _kind(executed)
        if kind is None:
            continue
        one = executed.instruction
        operands = [a for name in one.operands for a in executed.computation.arrays(name)]
        values = operands if kind in ("reduce-scatter", "all-to-all") else list(one.arrays)
        if kind == "all-reduce" and one.opcode.endswith("-start"):
            values = operands
        elif one.opcode.endswith("-start"):  # its value repeats the operands and adds flags
            values = list(one.arrays[len(operands) : 2 * len(operands)])
        if executed.fused and kind == "reduce-scatter":  # written as an all-reduce and a slice of it
            values = list(one.arrays)
        total = sum(array.bytes for array in values)
        found.append(Collective(kind=kind, bytes=total, times=executed.times, groups=groups(one.rest, devices=devices)))
    return found


def _kind(executed: Executed) -> Kind | None:
    opcode, within = executed.instruction.opcode.removesuffix("-start"), executed.computation
    if opcode not in KINDS:
        return None
    if executed.fused:
        # TPU programs hold fusions for a collective's start, for what it runs beside, and for its end: all name it.
        targets = "".join(i.rest for i in within if i.opcode == "custom-call")
        if "AsyncCollectiveDone" in targets:
            return None
        if within.name.startswith("async_collective_fusion") and "AsyncCollectiveStart" not in targets:
            return None
        if within.name.startswith("all-reduce-scatter"):
            return "reduce-scatter"
    return opcode


def groups(text: str, *, devices: int) -> tuple[tuple[int, ...], ...]:
    """The devices that communicate with each other, from an instruction's attributes.

    Four forms: pairs ``{{0,1},{1,0}}``, lists of the same look, numbered ``[2,4]<=[4,2]T(1,0)``, and by the axes of
    a mesh ``mesh['a'=2,'b'=4] {'b'}``, of an axis perhaps a part: ``'b':(2)2``.
    """
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})?\}", text)
    if listed:
        if not listed[1]:
            return (tuple(range(devices)),)
        return tuple(tuple(int(i) for i in part.split(",")) for part in re.findall(r"\{([\d,]+)\}", listed[1]))
    numbered = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if numbered:
        shape, over, order = (None if g is None else [int(i) for i in g.split(",")] for g in numbered.groups())
        assert shape is not None and over is not None
        ids = np.arange(math.prod(over)).reshape(over)
        return _rows((ids if order is None else ids.transpose(order)).reshape(shape))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text)
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        chosen = {name: (before, size) for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named[2])}
        shape, over = [], []
        for name, size in sizes.items():
            before, part = chosen.get(name, ("", ""))
            split = [int(before), int(part), size // (int(before) * int(part))] if part else [1, size, 1]
            over += [len(shape) + 1] if name in chosen else []
            shape += split
        rest = [axis for axis in range(len(shape)) if axis not in over]
        ids = np.arange(math.prod(shape)).reshape(shape).transpose(rest + over)
        return _rows(ids.reshape(-1, math.prod(shape[axis] for axis in over)))
    return (tuple(range(devices)),)


def _rows(ids: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in ids.tolist())


def axes(found: Collective, mesh: Mapping[str, int]) -> str:
    """The mesh axes along which the devices of a group differ, as ``data+fsdp``."""
    sizes = tuple(mesh.values())
    places = [np.stack(np.unravel_index(np.array(group), sizes)) for group in found.groups]
    differ = [any(len(set(place[axis].tolist())) > 1 for place in places) for axis in range(len(sizes))]
    return "+".join(name for name, differs in zip(mesh, differ, strict=True) if differs) or "none"


def flops(module: Module) -> float:
    """Of matrix products and convolutions, two a multiply-add; the rest is small beside them."""
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
    """Pairs that meet within the input: a TPU writes a batch of products as a window of which most falls outside."""
    kernel = within.arrays(one.operands[1])[0]
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    assert labels is not None
    out = dict(zip(labels[3], one.arrays[0].dims, strict=True))
    image = dict(zip(labels[1], within.arrays(one.operands[0])[0].dims, strict=True))
    weights = dict(zip(labels[2], kernel.dims, strict=True))
    window = re.search(r"window=\{([^}]*)\}", one.rest)
    given = dict(part.split("=") for part in window[1].split()) if window else {}
    product = out["b"] * out["f"] * weights["i"]
    spatial = sorted(label for label in out if label.isdigit())
    for at, label in enumerate(spatial):
        low, high = (int(i) for i in given.get("pad", "x".join(["0_0"] * len(spatial))).split("x")[at].split("_"))
        stride, dilate, kernel_dilate = (
            int(given[name].split("x")[at]) if name in given else 1 for name in ("stride", "lhs_dilate", "rhs_dilate")
        )
        del high  # follows from the sizes
        starts = np.arange(out[label])[:, None] * stride - low
        where = starts + np.arange(weights[label])[None, :] * kernel_dilate
        inside = (where >= 0) & (where <= (image[label] - 1) * dilate) & (where % dilate == 0)
        product *= int(inside.sum())
    return product // int(_attribute(one.rest, "batch_group_count") or 1)


def _attribute(text: str, name: str) -> str | None:
    match = re.search(rf"\b{name}=(\d+)", text)
    return match[1] if match else None


def memory_bytes(module: Module) -> float:
    """Read from and written to a device's main memory, fusion by fusion; of what is sliced, the slice."""
    total = 0
    for executed in module.executed():
        if not executed.fused:
            total += executed.times * _moved(module, executed)
    return float(total)


def _moved(module: Module, executed: Executed) -> int:
    one, within = executed.instruction, executed.computation
    if one.opcode in _FREE or one.opcode.endswith("-done") or "AllocateBuffer" in one.rest:
        return 0
    operands = [within.arrays(name) for name in one.operands]
    if one.opcode == "copy-start":
        return _main(one.arrays[:1]) + _main(operands[0])
    if one.opcode.endswith("-start"):  # a slice or collective: its value is its operands, results and flags
        results = one.arrays[len(operands) : 2 * len(operands)]
        return _main(results) + sum(_size([result]) for result, a in zip(results, operands, strict=False) if _main(a))
    if one.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * _main(one.arrays)
    if one.opcode == "dynamic-update-slice":
        return 2 * _main(operands[1])
    if one.opcode != "fusion":
        return _main(one.arrays) + sum(map(_main, operands))
    inner = module.computations[one.called("calls")[0]]
    outputs, passed = list(one.arrays), set[int]()
    for output, operand in _ALIASED.findall(one.rest):  # buffers of a collective that runs beside the fusion
        passed.add(int(operand))
        outputs[int(output or 0)] = Array("token", (), 0)
    taken = _main(outputs)
    in_place = _in_place(inner)
    for name in in_place:
        whole = inner.by_name[name]
        if _main(outputs) and _main(whole.arrays):
            taken += _size(inner.arrays(whole.operands[1])) - _main(whole.arrays)
    for number, given in enumerate(operands):
        if _main(given) and number not in passed:
            taken += min(_read(module, inner, number, in_place), _main(given))
    return max(taken, 0)


def _in_place(inner: Computation) -> set[str]:
    """The updates of slices that a fusion ends with: the rest of their array stays where it is."""
    ends = [inner.root.name] if inner.root.opcode != "tuple" else list(inner.root.operands)
    found = set()
    for name in ends:
        while inner.by_name[name].opcode in _LOOKED_THROUGH:
            name = inner.by_name[name].operands[0]
        if inner.by_name[name].opcode == "dynamic-update-slice":
            found.add(name)
    return found


def _read(module: Module, inner: Computation, number: int, in_place: Set[str] = frozenset()) -> int:
    """Bytes of a fusion's parameter that it looks at."""
    for one in inner:
        if one.opcode == "parameter" and int(one.literal) == number:
            return _looked_at(module, inner, one, in_place)
    return 0


def _looked_at(module: Module, inner: Computation, value: Instruction, in_place: Set[str]) -> int:
    total = 0
    for user in inner:
        if value.name not in user.operands:
            continue
        first = user.operands[0] == value.name
        if user.opcode in ("dynamic-slice", "gather", "slice") and first:
            total += _size(user.arrays)
        elif user.opcode in _LOOKED_THROUGH:
            total += _looked_at(module, inner, user, in_place)
        elif user.opcode == "fusion":
            within = module.computations[user.called("calls")[0]]
            total += _read(module, within, user.operands.index(value.name))
        elif not (user.name in in_place and first):
            return _size(value.arrays)
    return total


def _size(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays)


def _main(arrays: Iterable[Array]) -> int:
    return _size(array for array in arrays if array.space == 0)


def by_kind(found: Sequence[Collective], mesh: Mapping[str, int]) -> list[tuple[str, str, list[Collective]]]:
    """Collectives of one kind over the same axes together, the most bytes sent first."""

    def key(one: Collective) -> tuple[str, str]:
        return one.kind, axes(one, mesh)

    rows = [(kind, over, list(group)) for (kind, over), group in itertools.groupby(sorted(found, key=key), key=key)]
    return sorted(rows, key=lambda row: -sum(one.times * one.sent for one in row[2]))
