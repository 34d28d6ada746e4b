"""AOT topologies of GPUs: machines of several, compiled for with JAX's CUDA plugin and no GPU attached."""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from mmjax.core.config import ConfigError
from mmjax.program.chips import Gpu
from mmjax.program.topology import Topology

_PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
MEMORY_FRACTION = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
"""The environment variables for the fraction of a GPU's memory that JAX allocates; the second is deprecated."""
DEFAULT_MEMORY_FRACTION = 0.75
"""What JAX takes of a GPU's memory unless ``XLA_CLIENT_MEM_FRACTION`` says otherwise."""

_CUDNN = (9, 10, 0)  # the version whose kernels the compiler may use; jax's wheels bring a newer one
_LIMITS = {
    "threads_per_block_limit": 1024, "threads_per_warp": 32, "threads_per_core_limit": 2048,
    "shared_memory_per_block": 48 * 2**10, "registers_per_core_limit": 2**16, "registers_per_block_limit": 2**16,
    "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 2**16 - 1, "block_dim_limit_z": 2**16 - 1,
    "thread_dim_limit_x": 1024, "thread_dim_limit_y": 1024, "thread_dim_limit_z": 64,
}  # fmt: skip
"""Limits that all GPUs of the table share (CUDA C++ Programming Guide, "Technical Specifications")."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuCluster(Topology):
    """Machines of ``per_host`` GPUs each."""

    chip: Gpu
    per_host: int

    @property
    def usable_bytes(self) -> float:
        """Bytes that JAX allocates of a GPU's memory."""
        return memory_fraction() * self.chip.hbm

    @property
    def links(self) -> dict[str, float]:
        """Published bytes/s of NVLink and of a network card (InfiniBand)."""
        return {"NVLink": self.chip.nvlink, "InfiniBand": self.chip.network}

    @property
    def compiler_options(self) -> Mapping[str, bool]:
        """Without a GPU no Triton tiles can be tuned, and untuned ones mean nothing; cuBLAS needs no tuning."""
        return {"xla_gpu_enable_triton_gemm": False}

    def bandwidth(self, groups: Sequence[Sequence[jax.Device]]) -> float:
        """Returns the bytes/s of NVLink, or of the network if a group spans machines and that is less.

        A group's rings leave a machine through the network cards of all its GPUs in the group.
        """
        rate = self.chip.nvlink
        for group in groups:
            on_host = collections.Counter(self._host(device) for device in group)
            if len(on_host) > 1:
                rate = min(rate, min(on_host.values()) * self.chip.network)
        return rate

    def hop_bandwidth(self, pairs: Sequence[Sequence[jax.Device]]) -> float:
        """Returns the bytes/s of NVLink, or of a network card if a pair spans machines."""
        spans = any(len({self._host(device) for device in pair}) > 1 for pair in pairs)
        return min(self.chip.nvlink, self.chip.network) if spans else self.chip.nvlink

    def _host(self, device: jax.Device) -> int:
        return self.devices.index(device) // self.per_host


def make_gpu_cluster(name: str, chip: Gpu, sides: tuple[int, ...]) -> GpuCluster:
    """Returns the GPUs ``name``, such as ``h100:8`` or, on two machines, ``h100:2x8``.

    Raises:
      ConfigError: there is no such cluster, or JAX's CUDA plugin is not installed.
    """
    hosts, per_host = (1, *sides)[-2:]
    if len(sides) > 2 or 0 in sides:
        raise ConfigError(
            f"--topology={name}: write GPUs, or machines x GPUs, such as {chip.name}:8 or {chip.name}:2x8"
        )
    if per_host > chip.per_host:
        raise ConfigError(
            f"--topology={name}: a machine has {chip.per_host} of them; write machines x GPUs, such as "
            f"{chip.name}:{-(-hosts * per_host // chip.per_host)}x{chip.per_host}"
        )
    if not any(map(_is_installed, _PLUGINS)):
        raise ConfigError(
            f"--topology={name}: compiling for GPUs needs JAX's CUDA plugin; run: pip install 'mmjax[aot-gpu]'"
        )
    try:
        description = topologies.get_topology_desc(
            platform="cuda", target_config=target_config(chip), topology=f"1x{hosts}x{per_host}"
        )
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"--topology={name}: JAX's CUDA plugin rejects it: {text}") from None
    devices: tuple[Any, ...] = tuple(description.devices)
    return GpuCluster(name=name, chip=chip, devices=devices, per_host=per_host)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent
        return False


def memory_fraction(default: float = DEFAULT_MEMORY_FRACTION) -> float:
    """Returns the fraction of a GPU's memory that JAX allocates, from the environment as JAX reads it."""
    key = next((key for key in MEMORY_FRACTION if os.environ.get(key)), None)
    if key is None:
        return default
    try:
        return float(os.environ[key])
    except ValueError:
        raise ConfigError(f"{key}={os.environ[key]}: not a number; write a fraction of the memory, as 0.9") from None


def target_config(chip: Gpu) -> str:
    """Returns the description of a GPU that the compiler asks for: a ``GpuTargetConfigProto`` as text."""
    major, minor = chip.capability
    cudnn = dict(zip(("major", "minor", "patch"), _CUDNN, strict=True))
    device = _LIMITS | {
        "name": chip.kind,
        "device_vendor": "NVIDIA Corporation",
        "platform_version": f"Compute Capability {major}.{minor}",
        "cuda_compute_capability": {
            "major": major,
            "minor": minor,
            "feature_extension": _Word("ACCELERATED_FEATURES" if major >= 9 else "NONE"),
        },
        "core_count": chip.cores,
        "fpus_per_core": chip.fpus_per_core,
        "clock_rate_ghz": chip.clock_ghz,
        "memory_bandwidth": int(chip.hbm_bandwidth),
        "device_memory_size": int(chip.hbm),
        "l2_cache_size": chip.l2_cache,
        "shared_memory_per_core": chip.shared_memory,
        "shared_memory_per_block_optin": chip.shared_memory - 2**10,
        "dnn_version": ".".join(map(str, _CUDNN)),
        "runtime_version": "12.9.0",
        "driver_version": "13.0.0",
    }
    return _as_text(
        {
            "gpu_device_info": device,
            "platform_name": "CUDA",
            "dnn_version_info": cudnn,
            "device_description_str": chip.kind,
        }
    )


class _Word(str):
    """A name of an enumeration, which stands without quotes."""


def _as_text(message: Mapping[str, Any]) -> str:
    """Writes a protocol buffer as text."""
    fields = []
    for key, value in message.items():
        if isinstance(value, Mapping):
            fields.append(f"{key} {{ {_as_text(value)} }}")
        else:
            quoted = isinstance(value, str) and not isinstance(value, _Word)
            fields.append(f'{key}: "{value}"' if quoted else f"{key}: {value}")
    return " ".join(fields)
