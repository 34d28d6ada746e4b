"""Reads ``.npz`` files, as big_vision and the ViT authors publish them: a zip archive of ``.npy`` arrays."""

from __future__ import annotations

import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from mmjax.weights.tensors import TensorFile, TensorInfo, WeightsError, one_line_errors
from mmjax.weights.zip_members import check_members


class NpzFile(TensorFile):
    """One ``.npz`` file."""

    def __init__(self, path: Path):
        self.path = path
        self.tensors: dict[str, TensorInfo] = {}
        with one_line_errors(path):
            self._archive = zipfile.ZipFile(path)
            for member in check_members(path, self._archive):
                if member.filename.endswith(".npy"):
                    self.tensors[member.filename.removesuffix(".npy")] = self._info(member)

    def _info(self, member: zipfile.ZipInfo) -> TensorInfo:
        with self._archive.open(member) as file:
            version = npy.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise WeightsError(f"{self.path}: {member.filename!r} is of version {version} of .npy; save it as 1.0")
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = header(file)
            data = member.file_size - file.tell()
        if dtype.hasobject or dtype.names is not None:
            raise WeightsError(f"{self.path}: {member.filename!r} holds Python objects; save plain arrays")
        # numpy does not know bfloat16 and writes it as two bytes without a meaning.
        info = TensorInfo(shape, np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype.newbyteorder("="))
        if (
            info.dtype.kind not in "biufV"
            or info.dtype.type is np.void
            or min(shape, default=0) < 0
            or info.nbytes != data
        ):
            raise WeightsError(
                f"{self.path}: {member.filename!r} of shape {shape} and dtype {dtype} has {data} bytes of data; "
                f"expected {info.nbytes} bytes of numbers; fetch it again"
            )
        return info

    def _read(self, name: str) -> np.ndarray:
        info = self.tensors[name]
        with self._archive.open(f"{name}.npy") as file:
            array = npy.read_array(file, allow_pickle=False)
        array = array.view(info.dtype) if array.dtype == np.dtype("V2") else array.astype(info.dtype, copy=False)
        return np.ascontiguousarray(array).reshape(info.shape)
