"""A compiled program's text: its instructions, and how often a step executes each."""

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
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a value; ``space`` is 0 for a device's main memory, others are small and on the chip."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        """As stored without padding; tokens and the like have none."""
        bits = _BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 0)
        return -(-math.prod(self.dims) * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: ``name = arrays opcode(operands), rest``."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str  # what stands between the parentheses
    rest: str
    root: bool

    def called(self, *roles: str) -> list[str]:
        """The computations that it names as one of ``roles``."""
        found: list[str] = []
        for role in roles:
            match = re.search(rf"\b{role}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", self.rest)
            if match:
                found += _NAME.findall(match[1]) if match[1] is not None else [match[2]]
        return found


class Computation:
    """Instructions by name, in their order."""

    def __init__(self, name: str, instructions: list[Instruction]):
        self.name = name
        self.by_name = {instruction.name: instruction for instruction in instructions}
        self.root = next((i for i in instructions if i.root), instructions[-1])

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.by_name.values())

    def arrays(self, name: str) -> tuple[Array, ...]:
        """Those of an operand; none where it stands outside."""
        return self.by_name[name].arrays if name in self.by_name else ()


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction with the computation it stands in and how often a step executes it."""

    instruction: Instruction
    computation: Computation
    times: int
    fused: bool  # within a fusion, which keeps what is between its instructions out of memory


class Module:
    """The text of ``compiled.as_text()``, read."""

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
        """Everything that a step executes; of a conditional's branches, the one that writes the most bytes.

        A loop of unknown length counts once: see ``unknown_loops``.
        """
        yield from self._walk(self.entry, 1, fused=False)

    @property
    def unknown_loops(self) -> list[str]:
        """Loops whose number of trips the text does not say."""
        return [
            found.instruction.name
            for found in self.executed()
            if found.instruction.opcode == "while" and self.trips(found.instruction, found.computation) is None
        ]

    def trips(self, loop: Instruction, within: Computation) -> int | None:
        """How often a ``while`` runs: as the compiler noted, or from a condition of the form ``i < n``.

        Loops that the compiler makes of a gathered product take two of its parts at a time: ``i`` grows by two.
        """
        noted = _KNOWN_TRIPS.search(loop.rest)
        if noted:
            return int(noted[1])
        condition = self.computations[loop.called("condition")[0]]
        test = condition.root
        if test.opcode != "compare" or "direction=LT" not in test.rest or len(test.operands) != 2:
            return None
        counter, limit = (condition.by_name[operand] for operand in test.operands)
        if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
            return None
        index = int(re.findall(r"index=(\d+)", counter.rest)[0])
        start = _constant(within, within.by_name[loop.operands[0]], index)
        step = _growth(self.computations[loop.called("body")[0]], index)
        return None if start is None else max(-(-(int(limit.literal) - start) // step), 0)

    def _walk(self, name: str, times: int, *, fused: bool) -> Iterator[Executed]:
        computation = self.computations[name]
        for instruction in computation:
            yield Executed(instruction, computation, times, fused)
            match instruction.opcode:
                case "while":
                    trips = self.trips(instruction, computation)
                    yield from self._walk(instruction.called("body")[0], times * (trips or 1), fused=fused)
                case "conditional":
                    branches = instruction.called("branch_computations", "true_computation", "false_computation")
                    yield from self._walk(max(branches, key=self._written), times, fused=fused)
                case "fusion":
                    for inner in instruction.called("calls"):
                        yield from self._walk(inner, times, fused=True)
                case "call" | "async-start":
                    for inner in instruction.called("to_apply", "calls"):
                        yield from self._walk(inner, times, fused=fused)

    @functools.lru_cache  # noqa: B019  a module lives as long as its plan
    def _written(self, name: str) -> int:
        return sum(
            found.times * sum(array.bytes for array in found.instruction.arrays)
            for found in self._walk(name, 1, fused=False)
        )


def _growth(body: Computation, index: int) -> int:
    """What a loop's body adds to the number at ``index`` of its value; one, where that is not seen."""
    if body.root.opcode != "tuple":
        return 1
    value, total = body.by_name[body.root.operands[index]], 0
    while value.opcode in ("add", "copy", "bitcast"):
        given = [body.by_name[name] for name in value.operands]
        numbers = [int(one.literal) for one in given if one.opcode == "constant" and one.literal.isdigit()]
        following = [one for one in given if one.opcode != "constant"]
        if len(following) != 1:
            return 1
        value, total = following[0], total + sum(numbers)
    return total if value.opcode == "get-tuple-element" and total > 0 else 1


def _constant(within: Computation, operand: Instruction, index: int) -> int | None:
    """The number at ``index`` of a loop's first value, seen through copies."""
    if operand.opcode != "tuple":
        return None
    value = within.by_name[operand.operands[index]]
    while value.opcode in ("copy", "bitcast") and value.operands[0] in within.by_name:
        value = within.by_name[value.operands[0]]
    return int(value.literal) if value.opcode == "constant" and value.literal.lstrip("-").isdigit() else None


def _instruction(line: str) -> Instruction | None:
    found = _LINE.match(line)
    if found is None:
        return None
    root, name, right = found[1], found[2], found[3]
    kind, right = _type(right)
    opcode, _, right = right.partition("(")
    end = _closing(right)
    inside, rest = right[:end], right[end + 1 :]
    return Instruction(
        name=name,
        opcode=opcode.strip(),
        arrays=tuple(_array(match) for match in _ARRAY.finditer(kind)),
        operands=tuple(_NAME.findall(inside)),
        literal=inside,
        rest=rest,
        root=bool(root),
    )


def _type(text: str) -> tuple[str, str]:
    """The type at the start of ``text``, and what follows it."""
    end = _closing(text[1:]) + 2 if text.startswith("(") else text.index(" ")
    return text[:end], text[end:]


def _closing(text: str) -> int:
    """Where the parenthesis that was opened just before ``text`` closes."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


def _array(match: re.Match[str]) -> Array:
    space = _SPACE.search(match[3] or "")
    return Array(match[1], tuple(int(dim) for dim in match[2].split(",") if dim), int(space[1]) if space else 0)
