"""Published hardware figures: TPU generations for ahead-of-time plans, and peak FLOP/s of GPUs."""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Figures of one TPU chip; ``per_device`` gives those of one JAX device where a chip counts as several."""

    name: str
    kind: str  # what the ``device_kind`` of its devices starts with
    devices: int = 1  # JAX devices per chip
    hbm: float  # bytes
    usable_hbm: float  # bytes that the compiler lets one program use
    bf16: float  # dense FLOP/s
    hbm_bandwidth: float  # bytes/s
    links: int  # to neighboring chips
    link_bandwidth: float  # bytes/s in one direction
    torus: int  # dimensions of the interconnect
    wrap_multiple: int  # a dimension is a ring if its size is a multiple of this
    options: tuple[tuple[str, str], ...] = ()  # further options of the topology description

    @property
    def per_device(self) -> Chip:
        """The figures of one JAX device."""
        n = self.devices
        return dataclasses.replace(
            self,
            devices=1,
            hbm=self.hbm / n,
            usable_hbm=self.usable_hbm / n,
            bf16=self.bf16 / n,
            hbm_bandwidth=self.hbm_bandwidth / n,
            link_bandwidth=self.link_bandwidth / n,
        )


# Capacity, peak, HBM bandwidth and total link bandwidth: Google Cloud's documentation, "TPU architecture", one page
# per generation (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x), which lists v4, v5e and v5p in Gbit/s one
# way (2400, 1600, 4800) and v6e and tpu7x in GB/s both ways (800, 1200). "How to Scale Your Model"
# (jax-ml.github.io/scaling-book) puts a link 10 % lower. By the same source v5e and v6e have rings only in a whole
# pod, the others where a side is a multiple of four. ``usable_hbm`` is what libtpu 0.0.52 reports when a program is too
# large.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4", kind="TPU v4", hbm=32 * GIB, usable_hbm=30.75 * GIB, bf16=275e12, hbm_bandwidth=1228e9,
            links=6, link_bandwidth=50e9, torus=3, wrap_multiple=4, options=(("chip_config_name", "megacore"),),
        ),
        Chip(
            name="v5e", kind="TPU v5 lite", hbm=16 * GIB, usable_hbm=15.75 * GIB, bf16=197e12, hbm_bandwidth=819e9,
            links=4, link_bandwidth=50e9, torus=2, wrap_multiple=16,
        ),
        Chip(
            name="v5p", kind="TPU v5", hbm=96 * GIB, usable_hbm=95.73 * GIB, bf16=459e12, hbm_bandwidth=2765e9,
            links=6, link_bandwidth=100e9, torus=3, wrap_multiple=4,
        ),
        Chip(
            name="v6e", kind="TPU v6 lite", hbm=32 * GIB, usable_hbm=31.24 * GIB, bf16=918e12, hbm_bandwidth=1638e9,
            links=4, link_bandwidth=100e9, torus=2, wrap_multiple=16,
        ),
        Chip(
            name="tpu7x", kind="TPU7x", devices=2, hbm=192 * GIB, usable_hbm=2 * 94.74 * GIB, bf16=2307e12,
            hbm_bandwidth=7380e9, links=6, link_bandwidth=100e9, torus=3, wrap_multiple=4,
        ),
    )
}  # fmt: skip

GPUS_BF16 = {
    "NVIDIA A10": 125e12,
    "NVIDIA A100": 312e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}
"""Dense bfloat16 FLOP/s by the start of ``device_kind``, from data sheets, without the factor for sparsity."""


def peak_flops(kind: str) -> float | None:
    """Returns the published dense bfloat16 FLOP/s of one device of this kind, or None if it is unknown."""
    peaks = dict(GPUS_BF16)
    for chip in CHIPS.values():  # some versions of libtpu use the short names
        peaks |= {chip.kind: chip.per_device.bf16, f"TPU {chip.name}": chip.per_device.bf16}
    # The longest name that matches whole words: an A100 is not an A10, and a v5 lite is not a v5.
    matches = [name for name in peaks if kind == name or kind.startswith((name + " ", name + "-"))]
    return peaks[max(matches, key=len)] if matches else None
