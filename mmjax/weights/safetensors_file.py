"""Reads safetensors files: a header in JSON, then the tensors one after another.

The safetensors package maps the whole file into memory, so that its pages count beside the tensors read from them;
here each tensor is read straight into its array.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mmjax.weights.tensors import TensorFile, TensorInfo, WeightsError, one_line_errors, quote, read_range

_LARGEST_HEADER = 8 * 2**20  # that of 80,000 tensors

_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "I16": np.int16, "U16": np.uint16, "I32": np.int32,
    "U32": np.uint32, "I64": np.int64, "U64": np.uint64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
    "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
}  # fmt: skip


class SafetensorsFile(TensorFile):
    """One safetensors file."""

    def __init__(self, path: Path):
        self.path = path
        self.tensors: dict[str, TensorInfo] = {}
        self._starts: dict[str, int] = {}
        with one_line_errors(path):
            header, first, size = self._read_header()
            end = first
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
                end = self._add(name, entry, first=first, expected=end)
        if end != size:
            raise WeightsError(
                f"{path}: its tensors end at byte {end}, the file at {size}: truncated or damaged; fetch it again"
            )

    def _read_header(self) -> tuple[dict[str, Any], int, int]:
        """The header, where the tensors start, and the size of the file."""
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
                raise WeightsError(
                    f"{self.path}: claims a header of {length} bytes in a file of {size}: truncated or damaged; "
                    "fetch it again"
                )
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise WeightsError(f"{self.path}: its header is not a list of tensors; fetch it again")
        return header, 8 + length, size

    def _add(self, name: str, entry: dict[str, Any], *, first: int, expected: int) -> int:
        """Notes a tensor, which must start where the one before it ended; returns its own end."""
        if entry["dtype"] not in _DTYPES:
            raise WeightsError(
                f"{self.path}: tensor {quote(name)} has dtype {quote(entry['dtype'])}; "
                f"known: {', '.join(sorted(_DTYPES))}"
            )
        shape, (start, end) = entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, end]
        if not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise WeightsError(
                f"{self.path}: tensor {quote(name)} has shape {quote(shape)} and bytes {quote([start, end])}: damaged"
            )
        info = TensorInfo(tuple(shape), np.dtype(_DTYPES[entry["dtype"]]))
        if end - start != info.nbytes or first + start != expected:
            raise WeightsError(
                f"{self.path}: tensor {quote(name)} of shape {quote(info.shape)} and dtype {entry['dtype']} takes "
                f"{info.nbytes} bytes from {expected - first} on, the header gives it bytes {start} to {end}; "
                "fetch it again"
            )
        self.tensors[name], self._starts[name] = info, first + start
        return first + end

    def _read(self, name: str) -> np.ndarray:
        info = self.tensors[name]
        count = info.nbytes // info.dtype.itemsize
        return read_range(self.path, self._starts[name], info.dtype, count).reshape(info.shape)
