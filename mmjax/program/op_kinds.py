"""Classifies device operations for profiles, by the compiled program if it has them, else by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

import jax

from mmjax.program.hlo import Computation, Instruction, Module

OpKind = Literal["matrix", "other", "collective", "copy", "control", "elsewhere"]
OP_KINDS: tuple[OpKind, ...] = get_args(OpKind)
"""In order of precedence: an operation that overlaps with one of an earlier kind costs no time."""

_COLLECTIVE = (
    r"all[-_]?reduce|all[-_]?gather|reduce[-_]?scatter|all[-_]?to[-_]?all|collective[-_]?(?:permute|broadcast)"
)
_OPCODES: tuple[tuple[OpKind, re.Pattern[str]], ...] = (
    ("collective", re.compile(rf"^(?:{_COLLECTIVE}|ragged-all-to-all|send|recv)(?:-start|-done)?$")),
    ("control", re.compile(r"^(?:while|conditional|call)$")),
    ("matrix", re.compile(r"^(?:dot|ragged-dot|scaled-dot|convolution)$")),
    ("copy", re.compile(r"^(?:copy|copy-start|copy-done|transpose|infeed|outfeed)$")),
)
_TARGETS = re.compile(r"gemm|matmul|\bdot|conv(?!ert)|f?mha|attention|flash|triangular", re.IGNORECASE)
_NAMES: tuple[tuple[OpKind, re.Pattern[str]], ...] = (
    ("collective", re.compile(rf"nccl|rccl|{_COLLECTIVE}|^(?:send|recv)\b|rendezvous", re.IGNORECASE)),
    ("control", re.compile(r"^(?:while|conditional|call)\b")),
    ("copy", re.compile(r"memcpy|memset|^copy|infeed|outfeed|^transfer", re.IGNORECASE)),
    ("matrix", re.compile(
        r"gemm|matmul|cutlass|nvjet|xmma|cublas|cudnn|conv(?!ert)|f?mha|attention|flash|(?:^|[_.\-])dot(?:[_.\-]|$)",
        re.IGNORECASE,
    )),
)  # fmt: skip
_NO_WORK = ("parameter", "bitcast", "tuple", "get-tuple-element", "constant")


def instruction_kinds(program: jax.stages.Compiled) -> tuple[dict[str, OpKind], str | None]:
    """Returns the kind of each instruction by name, and the program's name."""
    text = program.as_text() or ""
    header = re.match(r"HloModule ([\w.\-]+)", text)
    try:
        module = Module(text)
    except (ValueError, KeyError, IndexError):  # a newer compiler's syntax: fall back to names
        return {}, header[1] if header else None
    kinds: dict[str, OpKind] = {}
    for computation in module.computations.values():
        kinds |= {instruction.name: _kind(instruction, module) for instruction in computation}
    return kinds, header[1] if header else None


def kind_from_name(*names: str) -> OpKind:
    """Guesses the kind from the operation's names, tried in order."""
    return next((kind for name in names for kind, pattern in _NAMES if pattern.search(name)), "other")


def _kind(instruction: Instruction, module: Module) -> OpKind:
    for kind, pattern in _OPCODES:
        if pattern.match(instruction.opcode):
            return kind
    if instruction.opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
        name = f"{instruction.name} {target[1] if target else ''}"
        return "matrix" if _TARGETS.search(name) else kind_from_name(name)
    inner = _called(instruction, module)
    kinds = {_kind(one, module) for computation in inner for one in computation}
    return "matrix" if "matrix" in kinds else "collective" if "collective" in kinds else _copy_or_other(inner)


def _called(instruction: Instruction, module: Module) -> list[Computation]:
    if instruction.opcode not in ("fusion", "async-start", "async-update", "async-done"):
        return []
    names = instruction.called("calls", "called_computations")
    return [module.computations[name] for name in names if name in module.computations]


def _copy_or_other(inner: Sequence[Computation]) -> OpKind:
    """Classifies a fusion: one that only moves values is a copy."""
    opcodes = {one.opcode for computation in inner for one in computation}
    moves = opcodes & {"copy", "transpose"} and opcodes <= {"copy", "transpose", "reshape", *_NO_WORK}
    return "copy" if moves else "other"
