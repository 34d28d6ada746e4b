"""AOT topologies by name: ``v5e:16x16`` is a slice of TPUs, ``h100:2x8`` are GPUs."""

from __future__ import annotations

import re

from mmjax.core.config import ConfigError, nearest
from mmjax.program.chips import GPUS, TPUS
from mmjax.program.gpu_cluster import make_gpu_cluster
from mmjax.program.topology import Topology
from mmjax.program.tpu_slice import make_tpu_slice

_NAME = re.compile(r"(?P<chip>[a-z0-9]+):(?P<sides>\d+(x\d+)*)$")


def make_topology(name: str) -> Topology:
    """Returns the devices ``name``, such as ``v5e:16x16`` or ``h100:8``.

    Raises:
      ConfigError: there are no such devices, or their compiler is not installed.
    """
    match = _NAME.match(name)
    if match is None:
        raise ConfigError(
            f"--topology={name}: expected CHIP:SIDExSIDE, such as v5e:16x16 or v5p:4x4x8, or for GPUs CHIP:GPUS or "
            "CHIP:MACHINESxGPUS, such as h100:8 or h100:2x8"
        )
    chip, sides = match["chip"], tuple(int(side) for side in match["sides"].split("x"))
    if chip in TPUS:
        return make_tpu_slice(name, TPUS[chip], sides)
    if chip in GPUS:
        return make_gpu_cluster(name, GPUS[chip], sides)
    raise ConfigError(f"--topology={name}: no such chip; {nearest(chip, {**TPUS, **GPUS})}")
