"""Published hardware figures of TPUs and GPUs, for ahead-of-time plans and utilization."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self, TypeVar

GIB = 2**30

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Figures of one chip; ``per_device`` gives those of one JAX device where a chip counts as several."""

    name: str
    kind: str  # what the ``device_kind`` of its devices starts with
    devices: int = 1  # JAX devices per chip
    hbm: float  # bytes
    hbm_bandwidth: float  # bytes/s
    bf16: float  # dense FLOP/s of products of bfloat16, summed in float32
    f32: float  # of float32 at JAX's default precision
    f32_full: float  # of float32 at precision "highest"
    eight_bit: float  # of int8 or float8

    def peak(self, dtype: str, precision: str = "default") -> float:
        """Returns the FLOP/s of matrix products.

        Args:
          dtype: HLO's name of the operands' type, such as ``bf16``.
          precision: of the operands: ``default``, ``high`` or ``highest``.
        """
        if dtype in ("s8", "u8") or dtype.startswith("f8"):
            return self.eight_bit
        if dtype in ("f32", "f64"):
            return self.f32_full if precision == "highest" else self.f32
        return self.bf16

    @property
    def per_device(self) -> Self:
        """The figures of one JAX device."""
        per_chip = ("hbm", "hbm_bandwidth", "bf16", "f32", "f32_full", "eight_bit")
        return dataclasses.replace(self, devices=1, **{name: getattr(self, name) / self.devices for name in per_chip})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tpu(Chip):
    """A TPU chip and its place in a torus of chips."""

    usable_hbm: float  # bytes that the compiler lets one program use
    links: int  # to neighboring chips
    link_bandwidth: float  # bytes/s in one direction
    torus: int  # dimensions of the interconnect
    wrap_multiple: int  # a dimension is a ring if its size is a multiple of this
    options: tuple[tuple[str, str], ...] = ()  # further options of the topology description

    @property
    def per_device(self) -> Tpu:
        """The figures of one JAX device."""
        n = self.devices
        return dataclasses.replace(
            super().per_device, usable_hbm=self.usable_hbm / n, link_bandwidth=self.link_bandwidth / n
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu(Chip):
    """An NVIDIA GPU in a machine of several, and what its compiler must know of it."""

    per_host: int = 8
    nvlink: float  # bytes/s to the GPUs of the same machine, in one direction
    network: float  # bytes/s to other machines, in one direction: one network card for each GPU
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    fpus_per_core: int
    clock_ghz: float
    l2_cache: int  # bytes
    shared_memory: int  # bytes per core


def _tpu(*, bf16: float, **figures: Any) -> Tpu:
    """A TPU multiplies float32 as bfloat16: in one pass at the default precision, in six at the highest."""
    return Tpu(bf16=bf16, f32=bf16, f32_full=bf16 / 6, **figures)


# Capacity, peak, HBM bandwidth and total link bandwidth: Google Cloud's documentation, "TPU architecture", one page
# per generation (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x), which lists v4, v5e and v5p in Gbit/s one
# way (2400, 1600, 4800) and v6e and tpu7x in GB/s both ways (800, 1200). "How to Scale Your Model"
# (jax-ml.github.io/scaling-book) puts a link 10 % lower. By the same source v5e and v6e have rings only in a whole
# pod, the others where a side is a multiple of four. ``usable_hbm`` is what libtpu 0.0.52 reports when a program is too
# large.
TPUS = {
    chip.name: chip
    for chip in (
        _tpu(
            name="v4", kind="TPU v4", hbm=32 * GIB, usable_hbm=30.75 * GIB, bf16=275e12, eight_bit=275e12,
            hbm_bandwidth=1228e9, links=6, link_bandwidth=50e9, torus=3, wrap_multiple=4,
            options=(("chip_config_name", "megacore"),),
        ),
        _tpu(
            name="v5e", kind="TPU v5 lite", hbm=16 * GIB, usable_hbm=15.75 * GIB, bf16=197e12, eight_bit=394e12,
            hbm_bandwidth=819e9, links=4, link_bandwidth=50e9, torus=2, wrap_multiple=16,
        ),
        _tpu(
            name="v5p", kind="TPU v5", hbm=96 * GIB, usable_hbm=95.73 * GIB, bf16=459e12, eight_bit=918e12,
            hbm_bandwidth=2765e9, links=6, link_bandwidth=100e9, torus=3, wrap_multiple=4,
        ),
        _tpu(
            name="v6e", kind="TPU v6 lite", hbm=32 * GIB, usable_hbm=31.24 * GIB, bf16=918e12, eight_bit=1836e12,
            hbm_bandwidth=1638e9, links=4, link_bandwidth=100e9, torus=2, wrap_multiple=16,
        ),
        _tpu(
            name="tpu7x", kind="TPU7x", devices=2, hbm=192 * GIB, usable_hbm=2 * 94.74 * GIB, bf16=2307e12,
            eight_bit=4614e12, hbm_bandwidth=7380e9, links=6, link_bandwidth=100e9, torus=3, wrap_multiple=4,
        ),
    )
}  # fmt: skip

# Data sheets and white papers of NVIDIA, dense figures: A100 80GB SXM, H100 SXM, H200 SXM, HGX B200 (an eighth).
# NVLink is half of what they call its bandwidth, which counts both directions. Network: a DGX A100 has eight cards of
# 200 Gbit/s, a DGX H100, H200 and B200 eight of 400 Gbit/s (DGX user guides). ``hbm`` is what CUDA reports. Float32 at
# JAX's default precision is TF32. What the compiler asks for: CUDA C++ Programming Guide, "Technical Specifications per
# Compute Capability", and the device descriptions that XLA keeps in xla/backends/gpu/target_config/specs.
GPUS = {
    chip.name: chip
    for chip in (
        Gpu(
            name="a100", kind="NVIDIA A100", hbm=79.25 * GIB, hbm_bandwidth=2039e9, bf16=312e12, f32=156e12,
            f32_full=19.5e12, eight_bit=624e12, nvlink=300e9, network=25e9, capability=(8, 0), cores=108,
            fpus_per_core=64, clock_ghz=1.41, l2_cache=40 * 2**20, shared_memory=164 * 2**10,
        ),
        Gpu(
            name="h100", kind="NVIDIA H100", hbm=79.1 * GIB, hbm_bandwidth=3352e9, bf16=989e12, f32=494.5e12,
            f32_full=67e12, eight_bit=1979e12, nvlink=450e9, network=50e9, capability=(9, 0), cores=132,
            fpus_per_core=128, clock_ghz=1.98, l2_cache=50 * 2**20, shared_memory=228 * 2**10,
        ),
        Gpu(
            name="h200", kind="NVIDIA H200", hbm=139.8 * GIB, hbm_bandwidth=4800e9, bf16=989e12, f32=494.5e12,
            f32_full=67e12, eight_bit=1979e12, nvlink=450e9, network=50e9, capability=(9, 0), cores=132,
            fpus_per_core=128, clock_ghz=1.98, l2_cache=50 * 2**20, shared_memory=228 * 2**10,
        ),
        Gpu(
            name="b200", kind="NVIDIA B200", hbm=178.35 * GIB, hbm_bandwidth=8000e9, bf16=2250e12, f32=1125e12,
            f32_full=75e12, eight_bit=4500e12, nvlink=900e9, network=50e9, capability=(10, 0), cores=148,
            fpus_per_core=128, clock_ghz=1.965, l2_cache=126 * 2**20, shared_memory=228 * 2**10,
        ),
    )
}  # fmt: skip

_OTHER_GPUS = {
    "NVIDIA A10": 125e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}
"""Dense bfloat16 FLOP/s by the start of ``device_kind``, from data sheets, without the factor for sparsity."""


def find_chip(kind: str) -> Chip | None:
    """Returns the published figures of one device of this kind, or None if they are unknown."""
    chips: dict[str, Chip | None] = {**dict.fromkeys(_OTHER_GPUS), **{gpu.kind: gpu for gpu in GPUS.values()}}
    for chip in TPUS.values():  # some versions of libtpu use the short names
        chips |= dict.fromkeys((chip.kind, f"TPU {chip.name}"), chip.per_device)
    return _longest_match(kind, chips)


def peak_flops(kind: str) -> float | None:
    """Returns the published dense bfloat16 FLOP/s of one device of this kind, or None if it is unknown."""
    chip = find_chip(kind)
    return _longest_match(kind, _OTHER_GPUS) if chip is None else chip.bf16


def _longest_match(kind: str, table: Mapping[str, T]) -> T | None:
    """Returns the value of the longest name that matches whole words: an A100 is not an A10, a v5 lite is not a v5."""
    matches = [name for name in table if kind == name or kind.startswith((name + " ", name + "-"))]
    return table[max(matches, key=len)] if matches else None
