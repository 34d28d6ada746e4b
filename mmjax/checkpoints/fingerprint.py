"""A fingerprint of parameters: two runs agree bit for bit if their fingerprints do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np


def fingerprint(params: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over path, dtype, shape and little-endian content of each array, in the order of the paths."""
    digest = hashlib.sha256()
    for path in sorted(params):
        array = np.ascontiguousarray(params[path])
        digest.update(f"{path}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()
