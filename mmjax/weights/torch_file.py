"""Reads files of ``torch.save`` and TorchScript without torch: zip archives, and what was written before 2020."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.weights import torch_pickle
from mmjax.weights.tensors import TensorFile, TensorInfo, WeightsError, one_line_errors, quote, read_range
from mmjax.weights.torch_pickle import Storage, StoredTensor
from mmjax.weights.zip_members import check_members

_LARGEST_PICKLE = 16 * 2**20
_DEEPEST = 32  # dictionaries in dictionaries
_MOST_VALUES = 100_000

LEGACY_START = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""The pickle of torch's magic number, with which files begin that are not archives."""


class TorchFile(TensorFile):
    """One file of ``torch.save``; tensors in dictionaries are named by their keys, ``state_dict.visual.proj``."""

    def __init__(self, path: Path):
        self.path = path
        self.tensors: dict[str, TensorInfo] = {}
        self._views: dict[str, StoredTensor] = {}
        self._starts: dict[str, int] = {}  # of storages, in bytes
        with one_line_errors(path):
            with open(path, "rb") as file:
                is_legacy = file.read(len(LEGACY_START)) == LEGACY_START
            root, sizes = self._open_legacy() if is_legacy else self._open_archive()
            for name, tensor in _walk(root):
                size = sizes.get(tensor.storage.key, 0)
                if tensor.storage.numel * tensor.storage.dtype.itemsize > size:
                    raise WeightsError(
                        f"{path}: tensor {quote(name)} of shape {quote(tensor.info.shape)} lies in "
                        f"{tensor.storage.numel} numbers, of which there are {size} bytes: truncated or damaged; "
                        "fetch it again"
                    )
                self._views[name], self.tensors[name] = tensor, tensor.info
        if not self.tensors:
            raise WeightsError(f"{path}: holds no tensors; expected a state_dict")

    def _open_archive(self) -> tuple[Any, dict[str, int]]:
        """What an archive's pickle describes, and the bytes of each storage."""
        with zipfile.ZipFile(self.path) as archive, open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            members = check_members(self.path, archive)
            by_name = {member.filename: member for member in members}
            [pickle] = [name for name in by_name if name.endswith("/data.pkl") and name.count("/") == 1]
            folder = pickle.removesuffix("data.pkl")
            if by_name[pickle].file_size > _LARGEST_PICKLE:
                raise WeightsError(f"{self.path}: a pickle of {by_name[pickle].file_size} bytes; save tensors alone")
            order = f"{folder}byteorder"
            if order in by_name and archive.read(order) != b"little":
                raise WeightsError(f"{self.path}: written on a big-endian machine; load it in torch and save it here")
            root = torch_pickle.load(self.path, io.BytesIO(archive.read(pickle)))
            sizes = {}
            for name, member in by_name.items():
                if name.startswith(f"{folder}data/"):
                    if member.compress_type != zipfile.ZIP_STORED:
                        raise WeightsError(
                            f"{self.path}: {name} is compressed; torch.save never does so, save it again"
                        )
                    key = name.removeprefix(f"{folder}data/")
                    file.seek(member.header_offset + 26)  # the lengths of the name and of what follows it
                    lengths = file.read(4)
                    skipped = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
                    start = member.header_offset + 30 + skipped
                    if start + member.file_size > size:
                        raise WeightsError(f"{self.path}: {name} ends behind the file: truncated; fetch it again")
                    self._starts[key], sizes[key] = start, member.file_size
        return root, sizes

    def _open_legacy(self) -> tuple[Any, dict[str, int]]:
        """The same of an older file: pickles one after another, then the storages."""
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = io.BytesIO(file.read(_LARGEST_PICKLE))
            _magic, _version, system, root, keys = (torch_pickle.load(self.path, head) for _ in range(5))
            if system["little_endian"] is not True:
                raise WeightsError(f"{self.path}: written on a big-endian machine; load it in torch and save it here")
            storages = {tensor.storage.key: tensor.storage for _, tensor in _walk(root)}
            position, sizes = head.tell(), {}
            for key in keys:
                storage: Storage = storages[key]
                file.seek(position)
                if int.from_bytes(file.read(8), "little") != storage.numel:
                    raise WeightsError(
                        f"{self.path}: storage {key!r} is not of {storage.numel} numbers; fetch it again"
                    )
                self._starts[key], sizes[key] = position + 8, storage.numel * storage.dtype.itemsize
                position += 8 + sizes[key]
        if position > size:
            raise WeightsError(f"{self.path}: truncated after {size} of {position} bytes; fetch it again")
        return root, sizes

    def _read(self, name: str) -> np.ndarray:
        tensor, dtype = self._views[name], self.tensors[name].dtype
        start = self._starts[tensor.storage.key] + tensor.offset * dtype.itemsize
        numbers = read_range(self.path, start, dtype, tensor.extent)
        strides = [step * dtype.itemsize for step in tensor.strides]
        view = np.lib.stride_tricks.as_strided(numbers, tensor.info.shape, strides)
        return np.ascontiguousarray(view).reshape(tensor.info.shape)


def _walk(root: Any) -> list[tuple[str, StoredTensor]]:
    """All tensors in dictionaries, lists and tuples, by their dotted names."""
    tensors: list[tuple[str, StoredTensor]] = []
    waiting: list[tuple[str, Any, int]] = [("", root, 0)]
    visited = 0
    while waiting:
        name, value, depth = waiting.pop()
        visited += 1 + (len(value) if isinstance(value, dict | list | tuple) else 0)
        if depth > _DEEPEST or visited > _MOST_VALUES:
            raise ValueError(f"values nested over {_DEEPEST} deep, or without end")
        if isinstance(value, StoredTensor):
            tensors.append((name or "tensor", value))
        elif isinstance(value, dict | list | tuple) and not isinstance(value, torch_pickle.Global | Storage):
            items = list(value.items() if isinstance(value, dict) else enumerate(value))
            for key, item in reversed(items):
                if isinstance(key, str | int):
                    waiting.append((f"{name}.{key}" if name else str(key), item, depth + 1))
    return tensors
