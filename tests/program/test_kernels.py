"""Kernels of a compiled program: what each moves and multiplies, its time, its source, and what runs beside it."""

from pathlib import Path

import pytest

import mmjax
from mmjax.program import kernels as programs
from mmjax.program.chips import GPUS, TPUS
from mmjax.program.hlo import Module
from mmjax.program.products import flops
from mmjax.program.source_lines import SourceLines, phase
from support.hlo_texts import GPU_TEXT, TPU_TEXT

H100 = GPUS["h100"]
LAYERS = Path(mmjax.__file__).parent / "models" / "layers.py"


@pytest.fixture(scope="module")
def module():
    return Module(GPU_TEXT)


@pytest.fixture(scope="module")
def kernels(module):
    text = GPU_TEXT.replace("PACKAGE/models/layers.py", str(LAYERS))
    return {one.name: one for one in programs.find_kernels(module, H100, SourceLines(text))}


def test_every_kernel_has_its_kind_its_bytes_and_its_runs(kernels):
    slice_, stack = 512 * 64 * 2, 12 * 512 * 64 * 2
    assert {name: (one.kind, one.times, one.bytes) for name, one in kernels.items()} == {
        "stack": ("fill", 1, stack),
        "begun": ("collective", 1, 2 * 4000),
        "multiplied": ("product", 12, 64 * 64 * 2 + 2 * slice_ + 4),  # a slice of the weights, no scratch, an index
        "fusion-start": ("slice update", 12, 2 * slice_ + 4),
        "begun.2": ("collective", 1, 2 * 4000),
        "across": ("copy", 1, 2 * slice_),
        "reduced": ("reduction", 1, slice_ + 64 * 4),
        "doubled": ("elementwise", 1, 2 * 64 * 4),
    }


def test_a_kernel_takes_as_long_as_its_bytes_or_its_flops(module, kernels):
    product = kernels["multiplied"]
    assert (product.flops, product.dtype) == (2 * 512 * 64 * 64, "bf16")
    assert flops(module) == 12 * product.flops
    assert product.compute_seconds == pytest.approx(product.flops / 989e12)
    assert product.memory_seconds == pytest.approx(product.bytes / 3352e9)
    assert product.seconds == max(product.compute_seconds, product.memory_seconds)
    assert kernels["begun"].seconds == 0  # its links take longer


def test_float32_takes_its_own_rate_and_is_named():
    def found(dtype, precision):
        text = GPU_TEXT.replace('"DEFAULT","DEFAULT"', f'"{precision}","{precision}"').replace(
            "%p2 = bf16", f"%p2 = {dtype}"
        )
        return programs.find_kernels(Module(text), H100, SourceLines(""))

    for dtype, precision, rate in (("f32", "DEFAULT", 494.5e12), ("f32", "HIGHEST", 67e12), ("s8", "DEFAULT", 1979e12)):
        [product] = [one for one in found(dtype, precision) if one.flops]
        assert product.flops / product.compute_seconds == pytest.approx(rate)
    assert [one.name for one in programs.float32_products(found("f32", "DEFAULT"))] == ["multiplied"]
    assert not programs.float32_products(found("bf16", "DEFAULT"))


def test_a_kernel_comes_from_the_innermost_line_of_this_package(kernels):
    places = {name: str(one.source) for name, one in kernels.items() if one.source}
    assert places == {
        "multiplied": "mmjax/models/layers.py:80 Dense.__call__",  # flax called by it stands further in
        "fusion-start": "nnx/module.py:12 wrapper",
        "reduced": "elsewhere/loss.py:7",
    }
    assert {name: phase(one.operation) for name, one in kernels.items()} == {
        "stack": "", "begun": "", "multiplied": "forward", "fusion-start": "forward", "begun.2": "", "across": "",
        "reduced": "backward", "doubled": "recomputed",
    }  # fmt: skip


def test_a_collective_is_hidden_as_far_as_kernels_run_beside_it(module, kernels):
    overlaps = programs.find_overlaps(module, kernels.values())
    loop = 12 * (kernels["multiplied"].seconds + kernels["fusion-start"].seconds)
    assert overlaps["begun"] == (pytest.approx(loop), True)
    assert overlaps["begun.2"] == (0.0, False)


def test_a_tpus_collective_that_is_fused_is_matched_with_its_end():
    module = Module(TPU_TEXT.replace("%beside = bf16[8,128]{1,0} fusion(%x)", "%beside = bf16[8,128]{1,0} copy(%x)"))
    kernels = programs.find_kernels(module, TPUS["v5e"], SourceLines(""))
    assert {one.name: one.kind for one in kernels if one.times == 1} == {
        "scattered": "collective", "started": "collective", "beside": "copy", "ended": "collective", "copied": "copy",
        "moved": "collective",
    }  # fmt: skip
    beside = next(one for one in kernels if one.name == "beside")
    assert programs.find_overlaps(module, kernels)["started"] == (pytest.approx(beside.seconds), False)


def test_equal_kernels_of_a_line_are_one_row_and_rows_sum_to_the_step(kernels):
    everything = [*kernels.values(), *kernels.values()]
    rows = programs.rank_kernels(everything)
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds, reverse=True)
    total = 2 * sum(one.times * one.seconds for one in kernels.values())
    assert sum(seconds) == pytest.approx(total) and sum(row["fraction"] for row in rows) == pytest.approx(1)
    product = next(row for row in rows if row["kind"] == "product")
    assert (product["executions"], product["bound"], product["phase"]) == (24, "bytes", "forward")
    assert programs.rank_kernels(everything, count=2) == rows[:2]
    by_kind = programs.summarize_by_kind(everything)
    assert sum(row["seconds"] for row in by_kind) == pytest.approx(total)
    assert {row["kind"] for row in by_kind} == {one.kind for one in everything}
