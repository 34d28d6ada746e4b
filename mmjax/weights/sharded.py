"""Reads weights that lie in several files, as the ``….index.json`` beside them says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmjax.weights.tensors import TensorFile, TensorInfo, WeightsError, check_plain_name, one_line_errors, quote

_LARGEST_INDEX = 16 * 2**20


class ShardedFiles(TensorFile):
    """The files of an index (``{"weight_map": {tensor: file}}``), all in its folder."""

    def __init__(self, path: Path, *, open_file: Callable[[Path], TensorFile]):
        self.path = path
        self.tensors: dict[str, TensorInfo] = {}
        with one_line_errors(path):
            if path.stat().st_size > _LARGEST_INDEX:
                raise WeightsError(
                    f"{path}: an index of {path.stat().st_size} bytes; expected one of safetensors files"
                )
            index = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
                raise WeightsError(f'{path}: has no "weight_map"; expected the index of a model in several files')
            self._file_of: dict[str, str] = index["weight_map"]
            for name in set(self._file_of.values()):
                check_plain_name(path, name)
                if "/" in name or name.endswith(".json"):  # "./a" and "././a" would be one file, read again and again
                    raise WeightsError(
                        f"{path}: names {quote(name)}, which is no file of tensors beside it; fetch it again"
                    )
        self._files = {name: open_file(path.parent / name) for name in sorted(set(self._file_of.values()))}
        for tensor, name in self._file_of.items():
            if tensor not in self._files[name].tensors:
                raise WeightsError(
                    f"{path}: says that {quote(tensor)} lies in {name}, which lacks it; fetch both again"
                )
            self.tensors[tensor] = self._files[name].tensors[tensor]

    def _read(self, name: str) -> np.ndarray:
        return self._files[self._file_of[name]].read(name)
