"""Parameters as the tensors of another layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from mmjax.core.config import ConfigError
from mmjax.weights.rules import Rule

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


def to_tensors(params: Mapping[str, np.ndarray], rules: Iterable[Rule]) -> dict[str, np.ndarray]:
    """The tensors that hold ``params``, each of which must be in one of the rules."""
    tensors: dict[str, np.ndarray] = {}
    written: set[str] = set()
    for rule in rules:
        arrays = [params[path] for path in rule.ours]
        written.update(rule.ours)
        for layer, name in enumerate(rule.names(len(arrays[0]) if rule.stacked else 1)):
            tensors[name] = rule.write([array[layer] for array in arrays] if rule.stacked else arrays)
    if left := sorted(set(params) - written):
        raise ConfigError(f"this layout has no tensor for {', '.join(left[:6])}; use --format=stablehlo")
    return tensors


def save_safetensors(tensors: Mapping[str, np.ndarray], path: Path, *, dtype: str) -> None:
    """Writes tensors in ``dtype``; transformers opens no file that does not say it is for torch."""
    # safetensors writes an array's memory whatever its strides say. ascontiguousarray would give numbers an axis.
    cast = {name: tensor.astype(DTYPES[dtype], order="C") for name, tensor in tensors.items()}
    save_file(cast, path, metadata={"format": "pt"})
