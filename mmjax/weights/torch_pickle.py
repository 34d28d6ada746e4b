"""Interprets the pickles of ``torch.save`` without running any of them: tensors come out, or an error.

Beside plain values (``mmjax.core.plain_pickle``) the few names below are known, and descriptions of tensors are made of
them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from mmjax.core import plain_pickle
from mmjax.core.plain_pickle import Global
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
    try:
        return plain_pickle.load(file, _Machine(path), most_instructions=MOST_INSTRUCTIONS)
    except plain_pickle.PickleRefused as error:
        raise WeightsError(
            f"{path}: its pickle is not one that torch.save writes of tensors ({error}); save its state_dict() alone"
        ) from None


class _Machine(plain_pickle.Machine):
    def __init__(self, path: Path):
        super().__init__()
        self.path = path

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

    def persistent(self, identity: Any) -> Storage:
        """A storage beside the pickle."""
        return _storage(identity)

    def build(self, value: Any, state: Any) -> None:
        """The attributes of a module; of others they are no tensors."""
        if isinstance(value, Module):
            value.update(state)


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
