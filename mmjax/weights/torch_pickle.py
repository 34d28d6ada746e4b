"""Interprets the pickles of ``torch.save`` without running any of them: tensors come out, or an error.

A pickle is a program for a stack machine, and Python's own machine calls whatever the program names. This one calls
nothing. It knows the instructions for plain values and the few names below, and makes descriptions of tensors of them.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from mmjax.weights.tensors import TensorInfo, WeightsError

MOST_INSTRUCTIONS = 300_000  # the state of 1,000 parameters with Adam's moments has 125,000

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16,
        "int64": np.int64, "int32": np.int32, "int16": np.int16, "int8": np.int8, "uint8": np.uint8, "bool": np.bool_,
        "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64, "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e5m2": ml_dtypes.float8_e5m2,
    }.items()
}  # fmt: skip
"""By their names in torch."""

_STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip

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


class Storage(NamedTuple):
    """A run of numbers that tensors are views of."""

    key: str
    dtype: np.dtype  # uint8 if only its bytes are known
    numel: int


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A view of a storage."""

    storage: Storage
    offset: int
    strides: tuple[int, ...]
    info: TensorInfo

    @property
    def extent(self) -> int:
        """From its first number to its last one, in numbers."""
        if 0 in self.info.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.info.shape, self.strides, strict=True))


class Module(dict[str, Any]):
    """An object of a TorchScript archive, as its attributes."""


def load(path: Path, file: IO[bytes]) -> Any:
    """The value of the pickle that starts where ``file`` stands; leaves it after that pickle.

    Args:
        path: Of the file, for messages.
        file: Of limited size: its pickle is read into memory.
    """
    machine = _Machine(path)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > MOST_INSTRUCTIONS:
            raise WeightsError(
                f"{path}: its pickle has over {MOST_INSTRUCTIONS:,} instructions; save its state_dict() alone"
            )
        machine.run(opcode.name, argument)
    return machine.stack.pop()


class _Machine:
    def __init__(self, path: Path):
        self.path = path
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
                stack.append(tuple(self.pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "LIST":
                stack.append(self.pop_to_mark())
            case "DICT":
                stack.append(_pairs(self.pop_to_mark()))
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = self.pop_to_mark()
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][key] = value
            case "SETITEMS":
                items = self.pop_to_mark()
                stack[-1].update(_pairs(items))
            case "GLOBAL":
                stack.append(self.check(Global(*argument.split(" ", 1))))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(self.check(Global(module, name)))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self.call(function, arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Module):
                    stack[-1].update(state)  # of others, attributes that are no tensors
            case _:
                raise WeightsError(
                    f"{self.path}: its pickle has the instruction {opcode}, which torch.save never writes"
                )

    def pop_to_mark(self) -> list[Any]:
        """The values since the last mark."""
        start = self.marks.pop()
        items, self.stack[start:] = self.stack[start:], []
        return items

    def check(self, name: Global) -> Global:
        """Raises unless ``name`` is one that tensors are made of."""
        known = name in _CALLS or name.module.startswith("__torch__")
        if not known and not (name.module == "torch" and (name.name in _STORAGES or name.name in DTYPES)):
            raise WeightsError(
                f"{self.path}: its pickle asks for {'.'.join(name)[:100]!r}, and only tensors are read; take the "
                "model's safetensors file, or load it in torch and save its state_dict() alone"
            )
        return name

    def call(self, function: Global, arguments: tuple[Any, ...]) -> Any:
        """What one of the known names makes of ``arguments``."""
        if function in _CALLS:
            return _CALLS[function](*arguments)
        if function.module.startswith("__torch__"):
            return Module()
        raise WeightsError(f"{self.path}: its pickle calls {'.'.join(function)}, which torch.save never does")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _storage(identity: tuple[Any, ...]) -> Storage:
    """From what torch writes for a storage: its kind, key, device, count and, long ago, the part to take of it."""
    kind, of_type, key, _, count, *view = identity
    if kind != "storage" or not isinstance(key, str) or any(part is not None for part in view):
        raise ValueError(f"a storage described as {str(identity)[:100]}")
    untyped = of_type == Global("torch.storage", "UntypedStorage")
    return Storage(key, DTYPES["uint8" if untyped else _STORAGES[of_type.name]], _natural(count))


def _rebuild_tensor(storage: Storage, offset: int, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    return _view(storage, offset, shape, strides, storage.dtype)


def _rebuild_tensor_of_bytes(
    storage: Storage, offset: int, shape: Any, strides: Any, _requires_grad: Any, _hooks: Any, dtype: Global, *_: Any
) -> StoredTensor:
    return _view(storage, offset, shape, strides, DTYPES[dtype.name])


def _view(storage: Storage, offset: int, shape: Any, strides: Any, dtype: np.dtype) -> StoredTensor:
    storage = Storage(storage.key, dtype, storage.numel * storage.dtype.itemsize // dtype.itemsize)
    info = TensorInfo(tuple(map(_natural, shape)), dtype)
    tensor = StoredTensor(storage, _natural(offset), tuple(map(_natural, strides)), info)
    if len(tensor.strides) != len(info.shape):
        raise ValueError(f"a tensor of shape {info.shape} with {len(tensor.strides)} strides")
    # Repeated by a stride of 0, one number could become a tensor of any size.
    if tensor.offset + tensor.extent > storage.numel or math.prod(info.shape) > storage.numel:
        raise ValueError(f"a tensor of shape {info.shape} from {offset} on in {storage.numel} numbers")
    return tensor


def _natural(number: Any) -> int:
    if not isinstance(number, int) or not 0 <= number < 2**63:
        raise ValueError("a size that is no natural number of 63 bits")
    return number


def _first(value: Any, *_: Any) -> Any:
    return value


_CALLS: dict[Global, Callable[..., Any]] = {
    Global("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    Global("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_of_bytes,
    Global("torch._utils", "_rebuild_parameter"): _first,
    Global("torch", "Size"): _first,
    Global("torch", "device"): _first,
    Global("torch.serialization", "_get_layout"): _first,
    Global("torch.storage", "UntypedStorage"): _first,
    Global("torch.jit._pickle", "restore_type_tag"): _first,
    **{Global("torch.jit._pickle", f"build_{kind}list"): _first for kind in ("int", "double", "bool", "tensor")},
    Global("collections", "OrderedDict"): lambda pairs=(): dict(pairs),
}
"""What may be called, and what stands in for it."""
