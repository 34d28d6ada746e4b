"""A parser of HLO text: the instructions of a compiled program, and how often a step executes each."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "f4e2m1fn": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16,
    "bf16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_ASYNCHRONOUS = ("fusion-start", "custom-call-start")  # GPU programs of jax 0.12 have one kernel begin and end apart
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a value; ``space`` is 0 for main memory (HBM), other memory spaces are small and on the chip."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        """Size without padding; tokens and other types without data have 0 bytes."""
        bits = _BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 0)
        return -(-math.prod(self.dims) * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: ``name = arrays opcode(operands), rest``."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str  # the text between the parentheses
    rest: str
    root: bool

    def called(self, *roles: str) -> list[str]:
        """Returns the names of computations it calls in one of ``roles``, such as ``body`` or ``to_apply``."""
        names: list[str] = []
        for role in roles:
            match = re.search(rf"\b{role}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", self.rest)
            if match:
                names += _NAME.findall(match[1]) if match[1] is not None else [match[2]]
        return names


class Computation:
    """A named list of instructions."""

    def __init__(self, name: str, instructions: list[Instruction]):
        self.name = name
        self.by_name = {instruction.name: instruction for instruction in instructions}
        self.root = next((i for i in instructions if i.root), instructions[-1])

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.by_name.values())

    def arrays(self, name: str) -> tuple[Array, ...]:
        """Returns the arrays of the instruction ``name``; none if it is in another computation."""
        return self.by_name[name].arrays if name in self.by_name else ()


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction, its computation, and how often a step executes it."""

    instruction: Instruction
    computation: Computation
    times: int
    fused: bool  # inside a fusion, whose intermediate values never reach memory


class Module:
    """The computations of a program, parsed from ``compiled.as_text()``."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        name, lines = "", list[Instruction]()
        for line in text.splitlines():
            if not line.startswith(" "):
                header = _HEADER.match(line)
                if header and "->" in line:
                    name, lines = header[2], []
                    if header[1]:
                        self.entry = name
                elif line == "}" and name:
                    self.computations[name] = Computation(name, lines)
                    name = ""
            elif name and (instruction := _instruction(line)) is not None:
                lines.append(instruction)

    def executed(self) -> Iterator[Executed]:
        """Yields every instruction that a step executes.

        Of a conditional it takes the branch that writes the most bytes. A loop with an unknown trip count counts once;
        see ``unknown_loops``.
        """
        yield from self._walk(self.entry, 1, fused=False)

    @property
    def unknown_loops(self) -> list[str]:
        """Names of loops whose trip count the text does not show."""
        return [
            executed.instruction.name
            for executed in self.executed()
            if executed.instruction.opcode == "while"
            and self.trip_count(executed.instruction, executed.computation) is None
        ]

    def trip_count(self, loop: Instruction, within: Computation) -> int | None:
        """Returns how often a ``while`` runs: the compiler's annotation, or derived from a condition ``i < n``.

        The step of ``i`` may be 2: the compiler's loop over an all-gathered matmul handles two shards per iteration.
        """
        annotated = _KNOWN_TRIPS.search(loop.rest)
        if annotated:
            return int(annotated[1])
        condition = self.computations[loop.called("condition")[0]]
        test = condition.root
        if test.opcode != "compare" or "direction=LT" not in test.rest or len(test.operands) != 2:
            return None
        counter, limit = (condition.by_name[operand] for operand in test.operands)
        if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
            return None
        index = int(re.findall(r"index=(\d+)", counter.rest)[0])
        start = _initial_constant(within, within.by_name[loop.operands[0]], index)
        step = _counter_step(self.computations[loop.called("body")[0]], index)
        return None if start is None else max(-(-(int(limit.literal) - start) // step), 0)

    def _walk(self, name: str, times: int, *, fused: bool) -> Iterator[Executed]:
        computation = self.computations[name]
        for instruction in computation:
            yield Executed(instruction, computation, times, fused)
            match instruction.opcode:
                case "while":
                    trips = self.trip_count(instruction, computation)
                    yield from self._walk(instruction.called("body")[0], times * (trips or 1), fused=fused)
                case "conditional":
                    branches = instruction.called("branch_computations", "true_computation", "false_computation")
                    yield from self._walk(max(branches, key=self._bytes_written), times, fused=fused)
                case "fusion":
                    for inner in instruction.called("calls"):
                        yield from self._walk(inner, times, fused=True)
                case "call" | "async-start":
                    for inner in instruction.called("to_apply", "calls"):
                        yield from self._walk(inner, times, fused=fused)

    @functools.lru_cache  # noqa: B019  a module is short-lived, and so is its cache
    def _bytes_written(self, name: str) -> int:
        return sum(
            executed.times * sum(array.bytes for array in executed.instruction.arrays)
            for executed in self._walk(name, 1, fused=False)
        )


def _counter_step(body: Computation, index: int) -> int:
    """Returns what the loop body adds to element ``index`` of the loop's tuple; 1 if that cannot be seen."""
    if body.root.opcode != "tuple":
        return 1
    value, total = body.by_name[body.root.operands[index]], 0
    while value.opcode in ("add", "copy", "bitcast"):
        operands = [body.by_name[name] for name in value.operands]
        constants = [int(one.literal) for one in operands if one.opcode == "constant" and one.literal.isdigit()]
        variables = [one for one in operands if one.opcode != "constant"]
        if len(variables) != 1:
            return 1
        value, total = variables[0], total + sum(constants)
    return total if value.opcode == "get-tuple-element" and total > 0 else 1


def _initial_constant(within: Computation, operand: Instruction, index: int) -> int | None:
    """Returns the constant that element ``index`` of the loop's tuple starts with; None if it is not constant."""
    if operand.opcode != "tuple":
        return None
    value = within.by_name[operand.operands[index]]
    while value.opcode in ("copy", "bitcast") and value.operands[0] in within.by_name:
        value = within.by_name[value.operands[0]]
    return int(value.literal) if value.opcode == "constant" and value.literal.lstrip("-").isdigit() else None


def _instruction(line: str) -> Instruction | None:
    match = _LINE.match(line)
    if match is None:
        return None
    root, name, right = match[1], match[2], match[3]
    types, right = _split_type(right)
    opcode, _, right = right.partition("(")
    opcode = opcode.strip()
    if opcode in _ASYNCHRONOUS:  # its value is the operands, the results and flags
        opcode, types = opcode.removesuffix("-start"), _elements(types)[1]
    end = _closing_parenthesis(right)
    inside, rest = right[:end], right[end + 1 :]
    return Instruction(
        name=name,
        opcode=opcode,
        arrays=tuple(_array(match) for match in _ARRAY.finditer(types)),
        operands=tuple(_NAME.findall(inside)),
        literal=inside,
        rest=rest,
        root=bool(root),
    )


def _split_type(text: str) -> tuple[str, str]:
    """Splits ``text`` after the type that it starts with."""
    end = _closing_parenthesis(text[1:]) + 2 if text.startswith("(") else text.index(" ")
    return text[:end], text[end:]


def _elements(text: str) -> list[str]:
    """Returns the types of a tuple type's elements."""
    result, depth, begin = list[str](), 0, 1
    for match in re.finditer(r"[(){}\[\],]", text):
        depth += (match[0] in "({[") - (match[0] in ")}]")
        if depth == 0 or (depth == 1 and match[0] == ","):
            result.append(text[begin : match.start()].strip())
            begin = match.end()
    return result


def _closing_parenthesis(text: str) -> int:
    """Returns the index that closes a parenthesis opened just before ``text``."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


def _array(match: re.Match[str]) -> Array:
    space = _SPACE.search(match[3] or "")
    return Array(match[1], tuple(int(dim) for dim in match[2].split(",") if dim), int(space[1]) if space else 0)
