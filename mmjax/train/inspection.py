"""What a checkpoint holds, read without its model: sizes by module and a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.checkpoints.manager import Checkpoints, Which
from mmjax.runs import folder as run_folder

DEPTH = 2  # parts of a path that make a module's name in the table


def describe(workdir: str | Path, *, which: Which = "last") -> dict[str, Any]:
    """Step, parameters and bytes by module and in all, and the SHA-256 over all parameters."""
    checkpoints = Checkpoints(workdir, directory=run_folder.checkpoint_directory(workdir), read_only=True)
    step, params = checkpoints.following(which, lambda step: checkpoints.read_params(which=step))
    checkpoints.close()
    modules: dict[str, dict[str, int]] = {}
    for path, array in params.items():
        module = "/".join(path.split("/")[:-1][:DEPTH]) or path
        row = modules.setdefault(module, {"arrays": 0, "parameters": 0, "bytes": 0})
        row["arrays"] += 1
        row["parameters"] += array.size
        row["bytes"] += array.nbytes
    return {
        "workdir": str(workdir),
        "step": step,
        "steps": checkpoints.steps,
        "modules": modules,
        "parameters": sum(row["parameters"] for row in modules.values()),
        "bytes": sum(row["bytes"] for row in modules.values()),
        "sha256": fingerprint(params),
    }


def fingerprint(params: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over path, dtype, shape and little-endian content of each array, in the order of the paths."""
    digest = hashlib.sha256()
    for path in sorted(params):
        array = np.ascontiguousarray(params[path])
        digest.update(f"{path}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def table(facts: Mapping[str, Any]) -> str:
    """``describe``'s result for people."""
    rows = [("module", "arrays", "parameters", "bytes")]
    rows += [(name, *(f"{row[k]:,}" for k in rows[0][1:])) for name, row in facts["modules"].items()]
    arrays = sum(row["arrays"] for row in facts["modules"].values())
    rows.append(("all", f"{arrays:,}", f"{facts['parameters']:,}", f"{facts['bytes']:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    saved = ", ".join(map(str, facts["steps"]))
    return "\n".join([f"step {facts['step']} (saved: {saved})", *lines, f"sha256 {facts['sha256']}"])
