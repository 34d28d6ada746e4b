"""Published figures of TPU generations, for plans of slices that are not there, and the peaks of GPUs."""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip. Where a chip counts as several devices each of them has its share: see ``each``."""

    name: str
    kind: str  # the start of its devices' ``device_kind``
    devices: int = 1  # that a chip counts as
    hbm: float  # bytes
    usable: float  # bytes of it that the compiler gives to one program
    bf16: float  # dense FLOP/s
    hbm_bandwidth: float  # bytes/s
    links: int  # to neighbours
    link_bandwidth: float  # bytes/s in one direction
    torus: int  # dimensions of the interconnect
    wraps: int  # a dimension closes to a ring where its size is a multiple of this
    options: tuple[tuple[str, str], ...] = ()  # that the compiler wants beside the topology's name

    @property
    def each(self) -> Chip:
        """A device's share of the chip."""
        share = self.devices
        return dataclasses.replace(
            self,
            devices=1,
            hbm=self.hbm / share,
            usable=self.usable / share,
            bf16=self.bf16 / share,
            hbm_bandwidth=self.hbm_bandwidth / share,
            link_bandwidth=self.link_bandwidth / share,
        )


# Capacity, peak, HBM bandwidth and bandwidth of all links together: Google Cloud's documentation, "TPU architecture",
# one page a generation (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x), which gives v4, v5e and v5p in
# Gbit/s one way (2400, 1600, 4800) and v6e and tpu7x in GB/s both ways (800, 1200). "How to Scale Your Model"
# (jax-ml.github.io/scaling-book) holds a link to a tenth less; rings close on whole v5e and v6e pods alone, and on
# the others where a side is a multiple of four (same source). ``usable`` is what libtpu 0.0.52 itself says where a
# program is too large for it.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4", kind="TPU v4", hbm=32 * GIB, usable=30.75 * GIB, bf16=275e12, hbm_bandwidth=1228e9,
            links=6, link_bandwidth=50e9, torus=3, wraps=4, options=(("chip_config_name", "megacore"),),
        ),
        Chip(
            name="v5e", kind="TPU v5 lite", hbm=16 * GIB, usable=15.75 * GIB, bf16=197e12, hbm_bandwidth=819e9,
            links=4, link_bandwidth=50e9, torus=2, wraps=16,
        ),
        Chip(
            name="v5p", kind="TPU v5", hbm=96 * GIB, usable=95.73 * GIB, bf16=459e12, hbm_bandwidth=2765e9,
            links=6, link_bandwidth=100e9, torus=3, wraps=4,
        ),
        Chip(
            name="v6e", kind="TPU v6 lite", hbm=32 * GIB, usable=31.24 * GIB, bf16=918e12, hbm_bandwidth=1638e9,
            links=4, link_bandwidth=100e9, torus=2, wraps=16,
        ),
        Chip(
            name="tpu7x", kind="TPU7x", devices=2, hbm=192 * GIB, usable=2 * 94.74 * GIB, bf16=2307e12,
            hbm_bandwidth=7380e9, links=6, link_bandwidth=100e9, torus=3, wraps=4,
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
"""Dense bfloat16 FLOP/s by the start of ``device_kind``: the data sheets', without their factor for sparsity."""


def peak_flops(kind: str) -> float | None:
    """Published dense bfloat16 FLOP/s of one device of this kind, or None where it is not known."""
    peaks = dict(GPUS_BF16)
    for chip in CHIPS.values():  # which some versions of libtpu call by their short names
        peaks |= {chip.kind: chip.each.bf16, f"TPU {chip.name}": chip.each.bf16}
    # The longest name that fits as whole words: an A100 is no A10, and a v5 lite no v5.
    fitting = [name for name in peaks if kind == name or kind.startswith((name + " ", name + "-"))]
    return peaks[max(fitting, key=len)] if fitting else None
