"""The accelerators of this machine, found without starting JAX, which would take them for itself."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path


def find_gpus(environ: Mapping[str, str]) -> list[str]:
    """The NVIDIA GPUs that JAX may use, as CUDA_VISIBLE_DEVICES names them."""
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    if (visible := environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    command = [program, "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    return listed.stdout.split() if listed.returncode == 0 else []


def count_tpu_chips(environ: Mapping[str, str], *, devices: Path = Path("/dev")) -> int:
    """The number of TPU chips of this machine that JAX may use."""
    platforms = environ.get("JAX_PLATFORMS", "")
    if (platforms and "tpu" not in platforms) or importlib.util.find_spec("libtpu") is None:
        return 0
    return len([*devices.glob("accel[0-9]*")] or [*devices.glob("vfio/[0-9]*")])
