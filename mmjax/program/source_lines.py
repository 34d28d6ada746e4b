"""Lines of Python that the instructions of a compiled program come from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

import mmjax
from mmjax.program.hlo import Instruction

Phase = Literal["forward", "backward", "recomputed", ""]

_PACKAGE = Path(mmjax.__file__).parent
_TABLE = re.compile(r"^(FileNames|FunctionNames|FileLocations|StackFrames)\n((?:\d+ .*\n)*)", re.MULTILINE)
_ENTRY = re.compile(r'^(\d+) (?:"(.*)"|\{(.*)\})$', re.MULTILINE)
_NUMBER = re.compile(r"(\w+)=(\d+)")
_OWN_LINE = re.compile(r'source_file="([^"]*)"(?:.*? source_line=(\d+))?')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


class SourceLine(NamedTuple):
    """A place in a Python file; ``function`` is its qualified name, if it is known."""

    file: str
    line: int
    function: str = ""

    def __str__(self) -> str:
        path = Path(self.file)
        short = path.relative_to(_PACKAGE.parent) if path.is_relative_to(_PACKAGE) else Path(*path.parts[-2:])
        return f"{short}:{self.line}" + (f" {self.function}" if self.function else "")


class SourceLines:
    """The tables of stack frames that ``compiled.as_text()`` starts with."""

    def __init__(self, text: str):
        tables: dict[str, dict[int, dict[str, int] | str]] = {}
        for name, body in _TABLE.findall(text):
            tables[name] = {
                int(number): {key: int(value) for key, value in _NUMBER.findall(fields)} if fields else string
                for number, string, fields in _ENTRY.findall(body)
            }
        self._tables = tables

    def find(self, one: Instruction) -> SourceLine | None:
        """Returns the innermost line of this package that an instruction comes from, else the innermost line."""
        frames = self._frames(one)
        return next((frame for frame in frames if Path(frame.file).is_relative_to(_PACKAGE)), next(iter(frames), None))

    def _frames(self, one: Instruction) -> list[SourceLine]:
        match = _FRAME.search(one.rest)
        if match is None:
            own = _OWN_LINE.search(one.rest)
            return [SourceLine(own[1], int(own[2] or 0))] if own else []
        result, number = [], int(match[1])
        while isinstance(frame := self._tables.get("StackFrames", {}).get(number), dict):
            location = self._tables["FileLocations"][frame["file_location_id"]]
            assert isinstance(location, dict)
            names = (self._tables[t].get(location.get(key, 0), "") for t, key in _NAMES)
            file, function = map(str, names)
            result.append(SourceLine(file, location.get("line", 0), function))
            parent = frame.get("parent_frame_id", 1) - 1  # 0: none
            number = parent if parent < number else 0
        return result


_NAMES = (("FileNames", "file_name_id"), ("FunctionNames", "function_name_id"))


def operation_name(one: Instruction) -> str:
    """Returns JAX's name of what an instruction computes, such as ``jit(step)/jvp()/dot_general``."""
    match = _OP_NAME.search(one.rest)
    return match[1] if match else ""


def phase(operation: str) -> Phase:
    """Returns the part of a step that an operation belongs to, by JAX's name of it; empty if it has none."""
    if "rematted_computation" in operation:
        return "recomputed"
    if "transpose(" in operation:
        return "backward"
    return "forward" if "jvp(" in operation else ""
