"""Kernels of a compiled program: what each one moves and multiplies, and the least time that it can take."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from mmjax.program.chips import Chip
from mmjax.program.collectives import COLLECTIVE_KINDS
from mmjax.program.flops import PallasFlops
from mmjax.program.hlo import Executed, Instruction, Module
from mmjax.program.products import Product, ProductKind, find_product
from mmjax.program.source_lines import SourceLine, SourceLines, operation_name, phase
from mmjax.program.traffic import hbm_traffic, in_place_updates, is_free

KernelKind = ProductKind | Literal["collective", "slice update", "reduction", "copy", "fill", "elementwise", "other"]

_CHANNEL = re.compile(r"channel_id=(\d+)")
_MOVES = {
    "parameter", "constant", "iota", "broadcast", "tuple", "get-tuple-element", "bitcast", "copy", "transpose",
    "reshape", "slice", "dynamic-slice", "concatenate", "pad",
}  # fmt: skip
"""Opcodes of kernels that only move values."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """One instruction that runs by itself; bytes, FLOPs and seconds are of one execution."""

    name: str
    kind: KernelKind
    times: int
    bytes: int
    flops: int
    dtype: str  # of the operands that it multiplies; empty without products
    result: str
    operation: str
    source: SourceLine | None
    memory_seconds: float
    compute_seconds: float

    @property
    def seconds(self) -> float:
        """The longer one of both; a collective's time is that of its links and stands elsewhere."""
        return 0.0 if self.kind == "collective" else max(self.memory_seconds, self.compute_seconds)


def find_kernels(module: Module, chip: Chip, lines: SourceLines, *, pallas: PallasFlops | None = None) -> list[Kernel]:
    """Returns the kernels that a step executes, in the order of the program.

    Args:
      module: the parsed program.
      chip: the figures of one device.
      lines: where instructions come from.
      pallas: FLOPs of Pallas kernels, from ``flops.count_pallas_flops``.
    """
    kernels = []
    for first, fused in _with_fused(module):
        multiplying = [
            (e.instruction, product)
            for e in (first, *fused)
            if (product := find_product(e.instruction, e.computation, pallas)) is not None
        ]
        kernels.append(_kernel(module, chip, lines, first, fused, multiplying))
    return kernels


def _with_fused(module: Module) -> list[tuple[Executed, list[Executed]]]:
    """Returns the instructions that run by themselves, each with those that are fused into it."""
    result: list[tuple[Executed, list[Executed]]] = []
    for executed in module.executed():
        if executed.fused:
            result[-1][1].append(executed)
        elif not is_free(executed.instruction):
            result.append((executed, []))
    return result


def _kernel(
    module: Module,
    chip: Chip,
    lines: SourceLines,
    first: Executed,
    fused: Sequence[Executed],
    multiplying: Sequence[tuple[Instruction, Product]],
) -> Kernel:
    products = [product for _, product in multiplying]
    # A fusion may have no name of its own, as one of a library's call with the slices around it.
    named = operation_name(first.instruction) or not multiplying
    one = first.instruction if named else multiplying[0][0]
    traffic = hbm_traffic(module, first)
    shape = first.instruction.arrays[0] if first.instruction.arrays else None
    return Kernel(
        name=first.instruction.name,
        kind=_kind(module, first.instruction, [e.instruction for e in fused], products),
        times=first.times,
        bytes=traffic,
        flops=sum(product.flops for product in products),
        dtype=max(products, key=lambda product: product.flops).dtype if products else "",
        result=f"{shape.dtype}[{','.join(map(str, shape.dims))}]" if shape else "",
        operation=operation_name(one),
        source=lines.find(one),
        memory_seconds=traffic / chip.hbm_bandwidth,
        compute_seconds=sum(product.flops / chip.peak(product.dtype, product.precision) for product in products),
    )


def _kind(module: Module, one: Instruction, fused: Sequence[Instruction], products: Sequence[Product]) -> KernelKind:
    if products:
        return max(products, key=lambda product: product.flops).kind
    # Scalars are indices.
    opcodes = {inner.opcode for inner in fused if any(array.dims for array in inner.arrays)} or {one.opcode}
    opcodes = {opcode.removesuffix("-start") for opcode in opcodes}
    if opcodes & set(COLLECTIVE_KINDS):
        return "collective"
    if one.opcode == "dynamic-update-slice" or (
        one.opcode == "fusion" and in_place_updates(module.computations[one.called("calls")[0]])
    ):
        return "slice update"
    if opcodes & {"reduce", "reduce-window"}:
        return "reduction"
    if opcodes <= _MOVES:
        return "copy" if one.operands else "fill"
    return "elementwise" if one.opcode == "fusion" else "other"


class Overlap(NamedTuple):
    """What runs between the start and the end of a collective: seconds per execution, and whether it multiplies."""

    seconds: float
    has_product: bool


def find_overlaps(module: Module, kernels: Iterable[Kernel]) -> dict[str, Overlap]:
    """Returns what the compiler's schedule runs beside each asynchronous operation, by the name of its start."""
    order = [executed for executed in module.executed() if not executed.fused]
    position = {executed.instruction.name: number for number, executed in enumerate(order)}
    by_name = {kernel.name: kernel for kernel in kernels if kernel.kind != "collective"}
    starts = dict[str, str]()  # of TPU programs, whose starts and ends are fusions, by channel
    result = {}
    for number, executed in enumerate(order):
        one = executed.instruction
        start = one.operands[0] if one.opcode.endswith("-done") and one.operands else ""
        if one.opcode == "fusion":
            inside = "".join(inner.rest for inner in module.computations[one.called("calls")[0]])
            channel = match[1] if (match := _CHANNEL.search(inside)) else ""
            if "AsyncCollectiveStart" in inside:
                starts[channel] = one.name
            elif "AsyncCollectiveDone" in inside:
                start = starts.get(channel, "")
        if start in position:
            between = [
                by_name[name] for e in order[position[start] + 1 : number] if (name := e.instruction.name) in by_name
            ]
            seconds = sum(kernel.times * kernel.seconds for kernel in between) / executed.times
            result[start] = Overlap(seconds, any(kernel.flops for kernel in between))
    return result


def summarize_by_kind(kernels: Iterable[Kernel]) -> list[dict[str, Any]]:
    """Returns executions, bytes, FLOPs and seconds of each kind of kernel, the longest first."""
    return [{"kind": group[0].kind, **_sums(group)} for group in _grouped(kernels, lambda kernel: kernel.kind)]


def rank_kernels(kernels: Sequence[Kernel], *, count: int | None = None) -> list[dict[str, Any]]:
    """Returns what takes the most time, the longest first; equal kernels of one line of the source are one row."""
    total = sum(kernel.times * kernel.seconds for kernel in kernels) or 1.0

    def key(kernel: Kernel) -> tuple[str, ...]:
        return kernel.kind, str(kernel.source), phase(kernel.operation), kernel.result, kernel.dtype

    rows = []
    for group in _grouped(kernels, key)[:count]:
        first, sums = group[0], _sums(group)
        memory = sum(kernel.times * kernel.memory_seconds for kernel in group)
        rows.append(
            {
                "kind": first.kind,
                "source": str(first.source) if first.source else "",
                "operation": first.operation,
                "phase": phase(first.operation),
                "result": first.result,
                **sums,
                "bound": "FLOPs" if sums["compute_seconds"] > memory else "bytes",
                "fraction": sums["seconds"] / total,
            }
        )
    return rows


def float32_products(kernels: Iterable[Kernel]) -> list[Kernel]:
    """Returns the kernels that multiply float32, which takes an accelerator at least twice as long as bfloat16."""
    return [kernel for kernel in kernels if kernel.dtype in ("f32", "f64") and kernel.flops]


def _grouped(kernels: Iterable[Kernel], key: Callable[[Kernel], Any]) -> list[list[Kernel]]:
    groups = [list(group) for _, group in itertools.groupby(sorted(kernels, key=key), key=key)]
    return sorted(groups, key=lambda group: (-_sums(group)["seconds"], key(group[0])))


def _sums(kernels: Iterable[Kernel]) -> dict[str, Any]:
    kernels = list(kernels)
    return {
        "executions": sum(kernel.times for kernel in kernels),
        "bytes": sum(kernel.times * kernel.bytes for kernel in kernels),
        "flops": sum(kernel.times * kernel.flops for kernel in kernels),
        "compute_seconds": sum(kernel.times * kernel.compute_seconds for kernel in kernels),
        "seconds": sum(kernel.times * kernel.seconds for kernel in kernels),
    }
