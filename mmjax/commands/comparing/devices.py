"""The accelerators that each of several runs at a time has for itself."""

from __future__ import annotations

import os

from mmjax.core.config import ConfigError
from mmjax.parallel.local_devices import count_tpu_chips, find_gpus
from mmjax.planning.plan import LARGEST_MEMORY_FRACTION
from mmjax.program.gpu_cluster import MEMORY_FRACTION, memory_fraction

_OWN_CHIP = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
"""What libtpu reads in a process with one chip (https://gist.github.com/skye/f82ba45d2445bb19d53545538754f9a3)."""


def divide_accelerators(jobs: int) -> list[dict[str, str]]:
    """Returns environment variables for each of several runs, by which it sees accelerators of its own.

    Without them each would take all: JAX reserves three quarters of every GPU that it sees, and a TPU serves one
    process. All runs have equally many GPUs, or divide the memory of one if there are fewer GPUs than runs; of TPUs
    each has one chip. A single run is left with all of them.

    Raises:
        ConfigError: if there are TPUs, but fewer than runs.
    """
    if jobs == 1:
        return [{}]
    if gpus := find_gpus(os.environ):
        if each := len(gpus) // jobs:
            return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * each : (i + 1) * each])} for i in range(jobs)]
        most = -(-jobs // len(gpus))
        fraction = memory_fraction(default=LARGEST_MEMORY_FRACTION) / most
        name, deprecated = MEMORY_FRACTION
        memory = {name: f"{fraction:.3f}", deprecated: ""}  # JAX accepts one of the two
        return [memory | {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(jobs)]
    if chips := count_tpu_chips(os.environ):
        if chips < jobs:
            raise ConfigError(f"--jobs={jobs}: each run needs a TPU chip, and this machine has {chips}")
        return [_OWN_CHIP | {"TPU_VISIBLE_CHIPS": str(i)} for i in range(jobs)]
    return [{} for _ in range(jobs)]
