"""Traffic of a compiled program between a device's cores and its main memory (HBM)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Set

from mmjax.program.hlo import Array, Computation, Executed, Instruction, Module
from mmjax.program.products import custom_call_target

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "opt-barrier", "partition-id", "replica-id", "iota", "async-start", "async-update",
}  # fmt: skip
"""Opcodes that move no bytes themselves."""

_TRANSPARENT = ("bitcast", "reshape", "convert")
_ALIASED = re.compile(r"\{(\d*)\}: \((\d+), \{\}\)")


def memory_bytes(module: Module) -> float:
    """Returns the bytes read from and written to a device's main memory (HBM), summed over fusions.

    Of an array that is sliced, only the slice counts.
    """
    total = 0
    for executed in module.executed():
        if not executed.fused:
            total += executed.times * hbm_traffic(module, executed)
    return float(total)


def is_free(one: Instruction) -> bool:
    """Whether an instruction outside of fusions does nothing when it is executed."""
    return one.opcode in _FREE or one.opcode.endswith("-done") or "AllocateBuffer" in one.rest


def hbm_traffic(module: Module, executed: Executed) -> int:
    """Returns the bytes that one execution of an instruction outside of fusions reads and writes."""
    one, within = executed.instruction, executed.computation
    if is_free(one):
        return 0
    operands = [within.arrays(name) for name in one.operands]
    if one.opcode == "all-reduce-start":  # unlike others its value is the result alone
        return _hbm_size(one.arrays) + sum(map(_hbm_size, operands))
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
        return _hbm_size(_outputs(one)) + sum(map(_hbm_size, operands))
    inner = module.computations[one.called("calls")[0]]
    outputs, aliased = _outputs(one, inner.root), set[int]()
    for output, operand in _ALIASED.findall(one.rest):  # buffers of a collective that overlaps with the fusion
        aliased.add(int(operand))
        outputs[int(output or 0)] = Array("token", (), 0)
    traffic = _hbm_size(outputs)
    in_place = in_place_updates(inner)
    for name in in_place:
        whole = inner.by_name[name]
        if _hbm_size(outputs) and _hbm_size(whole.arrays):
            traffic += _size(inner.arrays(whole.operands[1])) - _hbm_size(whole.arrays)
    for number, arrays in enumerate(operands):
        if _hbm_size(arrays) and number not in aliased:
            traffic += min(_bytes_of_parameter(module, inner, number, in_place), _hbm_size(arrays))
    return max(traffic, 0)


def _outputs(one: Instruction, call: Instruction | None = None) -> list[Array]:
    """Returns what an instruction writes: of a library's call all but the last array, which is scratch memory."""
    library = custom_call_target(call or one).startswith(("__cublas", "__cudnn"))
    scratch = library and len(one.arrays) > 1 and one.arrays[-1].dtype in ("s8", "u8")
    return list(one.arrays[:-1] if scratch else one.arrays)


def in_place_updates(inner: Computation) -> set[str]:
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
