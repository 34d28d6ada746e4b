"""Opens any file of weights by what it begins with, not by its name."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

from mmjax.weights.npz_file import NpzFile
from mmjax.weights.safetensors_file import SafetensorsFile
from mmjax.weights.sharded import ShardedFiles
from mmjax.weights.tensors import TensorFile, WeightsError, one_line_errors
from mmjax.weights.torch_file import LEGACY_START, TorchFile


def open_tensors(path: str | os.PathLike[str]) -> TensorFile:
    """The tensors of a file, listed and checked but not read.

    Args:
        path: A safetensors or ``.npz`` file, a file of ``torch.save`` (``.pt``, ``.pth``, ``.bin``), or the
            ``….index.json`` of a model in several of these.

    >>> import os, tempfile
    >>> import numpy as np
    >>> from mmjax.weights.open_tensors import open_tensors
    >>> path = os.path.join(tempfile.mkdtemp(), "weights.npz")
    >>> np.savez(path, kernel=np.ones((2, 3), np.float32))
    >>> file = open_tensors(path)
    >>> file.tensors["kernel"].shape
    (2, 3)
    >>> file.read("kernel").sum().item()
    6.0
    """
    path = Path(path)
    with one_line_errors(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise WeightsError(f"{path}: not a regular file; name a file of weights")
        if path.suffix == ".json":
            return ShardedFiles(path, open_file=open_tensors)
        with open(path, "rb") as file:
            start = file.read(64)
        if start.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            return TorchFile(path) if any(name.endswith("/data.pkl") for name in names) else NpzFile(path)
        if start.startswith(LEGACY_START):
            return TorchFile(path)
        if start[8:9] == b"{":
            return SafetensorsFile(path)
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: a pointer of Git LFS in place of the weights; run `git lfs pull` in its folder")
    raise WeightsError(
        f"{path}: neither a safetensors file, nor .npz, nor one of torch.save (a plain pickle is not run)"
    )
