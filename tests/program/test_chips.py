"""Published figures of chips, and the peak of a device by its kind."""

import pytest

from mmjax.program.chips import TPUS, peak_flops


@pytest.mark.parametrize("name", TPUS)
def test_chips_are_plausible_and_agree_with_what_the_benchmark_uses(name):
    chip = TPUS[name]
    assert 0.9 * chip.hbm < chip.usable_hbm <= chip.hbm
    assert chip.links == 2 * chip.torus
    assert 100 < chip.bf16 / chip.hbm_bandwidth < 700  # FLOP a byte at which arithmetic becomes the bound
    assert chip.link_bandwidth * chip.links < chip.hbm_bandwidth
    both = chip.per_device
    assert peak_flops(chip.kind) == both.bf16
    assert (both.hbm * chip.devices, both.bf16 * chip.devices) == (chip.hbm, chip.bf16)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA A10", 125e12), ("NVIDIA A10G", None), ("NVIDIA A1000", None),
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200", 989e12), ("TPU v4", 275e12),
        ("NVIDIA GH200 480GB", 989e12), ("TPU v5 lite", 197e12), ("TPU v5e", 197e12), ("TPU v5", 459e12),
        ("TPU v5p", 459e12), ("TPU v6 lite", 918e12), ("TPU7x", 2307e12 / 2), ("cpu", None), ("", None),
    ],
)  # fmt: skip
def test_the_peak_of_a_device_is_that_of_its_kind_and_of_no_other(kind, peak):
    assert peak_flops(kind) == peak
