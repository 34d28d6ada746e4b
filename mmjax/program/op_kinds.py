"""Of what kind an operation of a device is: by the compiled program where that has it, else by its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

import jax

from mmjax.program.hlo import Computation, Instruction, Module

Kind = Literal["matrix", "other", "collective", "copy", "control", "elsewhere"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of precedence: what runs beside an operation of an earlier kind costs no time."""

_COLLECTIVE = (
    r"all[-_]?reduce|all[-_]?gather|reduce[-_]?scatter|all[-_]?to[-_]?all|collective[-_]?(?:permute|broadcast)"
)
_OPCODES: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("collective", re.compile(rf"^(?:{_COLLECTIVE}|ragged-all-to-all|send|recv)(?:-start|-done)?$")),
    ("control", re.compile(r"^(?:while|conditional|call)$")),
    ("matrix", re.compile(r"^(?:dot|ragged-dot|scaled-dot|convolution)$")),
    ("copy", re.compile(r"^(?:copy|copy-start|copy-done|transpose|infeed|outfeed)$")),
)
_TARGETS = re.compile(r"gemm|matmul|\bdot|conv(?!ert)|f?mha|attention|flash|triangular", re.IGNORECASE)
_NAMES: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("collective", re.compile(rf"nccl|rccl|{_COLLECTIVE}|^(?:send|recv)\b|rendezvous", re.IGNORECASE)),
    ("control", re.compile(r"^(?:while|conditional|call)\b")),
    ("copy", re.compile(r"memcpy|memset|^copy|infeed|outfeed|^transfer", re.IGNORECASE)),
    ("matrix", re.compile(
        r"gemm|matmul|cutlass|nvjet|xmma|cublas|cudnn|conv(?!ert)|f?mha|attention|flash|(?:^|[_.\-])dot(?:[_.\-]|$)",
        re.IGNORECASE,
    )),
)  # fmt: skip
_NOTHING = ("parameter", "bitcast", "tuple", "get-tuple-element", "constant")


def kinds_of(program: jax.stages.Compiled) -> tuple[dict[str, Kind], str | None]:
    """The kind of each of the program's instructions by its name, and the program's own name."""
    text = program.as_text() or ""
    header = re.match(r"HloModule ([\w.\-]+)", text)
    try:
        module = Module(text)
    except (ValueError, KeyError, IndexError):  # a compiler's new form: names must do
        return {}, header[1] if header else None
    kinds: dict[str, Kind] = {}
    for computation in module.computations.values():
        kinds |= {instruction.name: _kind(instruction, module) for instruction in computation}
    return kinds, header[1] if header else None


def named(*names: str) -> Kind:
    """The kind that a name lets guess."""
    return next((kind for name in names for kind, pattern in _NAMES if pattern.search(name)), "other")


def _kind(instruction: Instruction, module: Module) -> Kind:
    for kind, pattern in _OPCODES:
        if pattern.match(instruction.opcode):
            return kind
    if instruction.opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
        words = f"{instruction.name} {target[1] if target else ''}"
        return "matrix" if _TARGETS.search(words) else named(words)
    inner = _called(instruction, module)
    found = {_kind(one, module) for computation in inner for one in computation}
    return "matrix" if "matrix" in found else "collective" if "collective" in found else _alone(inner)


def _called(instruction: Instruction, module: Module) -> list[Computation]:
    if instruction.opcode not in ("fusion", "async-start", "async-update", "async-done"):
        return []
    names = instruction.called("calls", "called_computations")
    return [module.computations[name] for name in names if name in module.computations]


def _alone(inner: Sequence[Computation]) -> Kind:
    """A fusion that only moves values is a copy."""
    opcodes = {one.opcode for computation in inner for one in computation}
    moves = opcodes & {"copy", "transpose"} and opcodes <= {"copy", "transpose", "reshape", *_NOTHING}
    return "copy" if moves else "other"
