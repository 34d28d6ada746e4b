"""Interprets pickles without running any of them: plain values come out, or an error.

A pickle is a program for a stack machine, and Python's own machine calls whatever the program names. This one calls
nothing. It knows the instructions for plain values; what names and persistent objects mean is up to a subclass.
"""

from __future__ import annotations

import pickletools
from typing import IO, Any, NamedTuple

_PLAIN = {
    "BININT", "BININT1", "BININT2", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "UNICODE", "BINSTRING",
    "SHORT_BINSTRING", "STRING", "BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "INT", "LONG", "LONG1", "LONG4",
    "FLOAT", "BINFLOAT",
}  # fmt: skip
"""Instructions that push their own argument."""

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Global(NamedTuple):
    """A name that a pickle mentions; nothing is imported."""

    module: str
    name: str


class PickleRefused(ValueError):
    """A pickle that holds more than plain values, or too much of them."""


class Machine:
    """The stack, and what each instruction does to it."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, opcode: str, argument: Any) -> None:
        """One instruction."""
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _ if opcode in _PLAIN:
                stack.append(argument)
            case _ if opcode in _CONSTANTS:
                stack.append(_CONSTANTS[opcode])
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                self.marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[argument])
            case "POP":
                stack.pop()
            case "TUPLE":
                stack.append(tuple(self._pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "LIST":
                stack.append(self._pop_to_mark())
            case "DICT":
                stack.append(_pairs(self._pop_to_mark()))
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = self._pop_to_mark()
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][key] = value
            case "SETITEMS":
                items = self._pop_to_mark()
                stack[-1].update(_pairs(items))
            case "GLOBAL":
                stack.append(self.check(Global(*argument.split(" ", 1))))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(self.check(Global(module, name)))
            case "BINPERSID":
                stack.append(self.persistent(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self.call(function, arguments))
            case "BUILD":
                state = stack.pop()
                self.build(stack[-1], state)
            case _:
                raise PickleRefused(f"it has the instruction {opcode}")

    def _pop_to_mark(self) -> list[Any]:
        """The values since the last mark."""
        start = self.marks.pop()
        items, self.stack[start:] = self.stack[start:], []
        return items

    def check(self, name: Global) -> Any:
        """What stands for ``name``; raises if it is refused, as all are here."""
        raise PickleRefused(f"it names {'.'.join(name)[:100]!r}")

    def call(self, function: Any, arguments: Any) -> Any:
        """What ``function`` makes of ``arguments``; ``check`` gave it."""
        raise PickleRefused(f"it calls {str(function)[:100]!r}")

    def persistent(self, identity: Any) -> Any:
        """The object outside the pickle with this ``identity``."""
        raise PickleRefused("it needs objects that are stored elsewhere")

    def build(self, value: Any, state: Any) -> None:
        """Gives ``value`` its attributes."""
        raise PickleRefused(f"it sets attributes of a {type(value).__name__}")


def load(file: IO[bytes], machine: Machine, *, most_instructions: int) -> Any:
    """The value of the pickle that starts where ``file`` stands; leaves it after that pickle.

    A damaged pickle raises errors of any kind; what ``machine`` refuses is PickleRefused.

    Args:
        file: Of limited size: its pickle is read into memory.
        machine: A new one.
        most_instructions: A longer pickle is refused.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > most_instructions:
            raise PickleRefused(f"it has over {most_instructions:,} instructions")
        machine.run(opcode.name, argument)
    return machine.stack.pop()


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))
