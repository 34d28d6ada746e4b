"""FLOPs of the matrix products of a compiled program, also of those inside calls of cuBLAS, cuDNN and Pallas."""

from __future__ import annotations

import math
import re
from typing import Literal, NamedTuple

import numpy as np

from mmjax.program.flops import PallasFlops
from mmjax.program.hlo import Array, Computation, Instruction, Module

ProductKind = Literal["product", "convolution", "attention", "Pallas kernel"]

_TARGET = re.compile(r'custom_call_target="([^"]+)"')
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{([\d,]*)\}|ensions":\[([^\]]*)\])')
_PRECISION = re.compile(r'operand_precision(?:=\{(\w+)|":\["(\w+)")')
_PALLAS_NAME = re.compile(r'op_name="(?:[^"]*/)?([^"/]+)/pallas_call')
_COST = re.compile(r'"?cost_estimate"?:\s*\{[^}]*?"?flops"?:\s*"?(\d+)')


class Product(NamedTuple):
    """A matrix product, convolution or kernel: FLOPs, 2 per multiply-add, and the type of its operands."""

    kind: ProductKind
    flops: int
    dtype: str
    precision: str  # default, high or highest


def flops(module: Module) -> float:
    """Returns the FLOPs of a step's products; other operations are negligible."""
    total = 0
    for executed in module.executed():
        product = find_product(executed.instruction, executed.computation)
        total += executed.times * product.flops if product else 0
    return float(total)


def find_product(one: Instruction, within: Computation, pallas: PallasFlops | None = None) -> Product | None:
    """Returns what an instruction multiplies, or None; a fusion's products are those of its own instructions.

    Args:
      one: the instruction.
      within: its computation.
      pallas: FLOPs of Pallas kernels that bring no estimate of their own, from ``flops.count_pallas_flops``.
    """
    target = custom_call_target(one)
    kind: ProductKind
    if one.opcode == "dot" or "matmul" in target or "gemm" in target:
        kind, count = "product", 2 * math.prod(one.arrays[0].dims) * _contracted(one, within)
    elif one.opcode == "convolution":
        image, kernel = (within.arrays(name)[0] for name in one.operands[:2])
        # TPU programs have convolutions in place of products.
        kind = "product" if re.search(r'op_name="[^"]*dot_general', one.rest) else "convolution"
        count = 2 * _multiply_adds(one.rest, image, kernel, one.arrays[0])
    elif target.startswith("__cudnn$conv"):
        kind, count = "convolution", 2 * _cudnn_multiply_adds(one, within, target)
    elif "fmha" in target:
        kind, count = "attention", _attention_flops(one, within, target)
    elif target == "tpu_custom_call":
        kind, count = "Pallas kernel", _pallas_flops(one, pallas or {})
    else:
        return None
    precision = _PRECISION.search(one.rest)
    dtype = next((a.dtype for name in one.operands for a in within.arrays(name)), "")
    return Product(kind, count, dtype, (precision[1] or precision[2]).lower() if precision else "default")


def custom_call_target(one: Instruction) -> str:
    """Returns the name of what a custom call calls; empty for other instructions."""
    match = _TARGET.search(one.rest) if one.opcode == "custom-call" else None
    return match[1] if match else ""


def _contracted(one: Instruction, within: Computation) -> int:
    match = _CONTRACTED.search(one.rest)
    dims = within.arrays(one.operands[0])[0].dims
    return math.prod(dims[int(i)] for i in re.findall(r"\d+", match[1] or match[2] or "")) if match else 1


def _pallas_flops(one: Instruction, pallas: PallasFlops) -> int:
    estimated, named = _COST.search(one.rest), _PALLAS_NAME.search(one.rest)
    if estimated:
        return int(estimated[1])
    return int(pallas.get((named[1], one.arrays[0].dims), 0)) if named else 0


def _attention_flops(one: Instruction, within: Computation, target: str) -> int:
    """Two products forwards, five backwards, where the logits are computed again; masked ones count too."""
    logits = re.search(r'"intermediate_tensor_shape":\{[^{}]*?"dimensions":\[([^\]]*)\]', one.rest)
    if logits is None:
        return 0
    batch, heads, queries, keys = (int(dim) for dim in re.findall(r"\d+", logits[1]))
    width = math.prod(within.arrays(one.operands[0])[0].dims) // (batch * heads * queries)
    return (5 if "Backward" in target else 2) * 2 * batch * heads * queries * keys * width


def _cudnn_multiply_adds(one: Instruction, within: Computation, target: str) -> int:
    """Counts as if forwards: an input's or a filter's gradient has as many multiply-adds."""
    first, second = (within.arrays(name)[0] for name in one.operands[:2])
    result = one.arrays[0]
    if "BackwardInput" in target:
        return _multiply_adds(one.rest, result, second, first)
    if "BackwardFilter" in target:
        return _multiply_adds(one.rest, first, result, second)
    return _multiply_adds(one.rest, first, second, result)


def _multiply_adds(text: str, image_: Array, kernel: Array, result: Array) -> int:
    """Counts multiply-adds inside the input: TPU programs write batched matmuls as mostly padded convolutions."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
    assert labels is not None
    out = dict(zip(labels[3], result.dims, strict=True))
    image = dict(zip(labels[1], image_.dims, strict=True))
    weights = dict(zip(labels[2], kernel.dims, strict=True))
    window = re.search(r"window=\{([^}]*)\}", text)
    attributes = dict(entry.split("=") for entry in window[1].split()) if window else {}
    product = out["b"] * out["f"] * weights["i"]
    spatial = sorted(label for label in out if label.isdigit())
    for axis, label in enumerate(spatial):
        padding = attributes.get("pad", "x".join(["0_0"] * len(spatial))).split("x")[axis]
        low = int(padding.partition("_")[0])  # the high padding follows from the sizes
        stride, dilate, kernel_dilate = (
            int(attributes[name].split("x")[axis]) if name in attributes else 1
            for name in ("stride", "lhs_dilate", "rhs_dilate")
        )
        starts = np.arange(out[label])[:, None] * stride - low
        positions = starts + np.arange(weights[label])[None, :] * kernel_dilate
        inside = (positions >= 0) & (positions <= (image[label] - 1) * dilate) & (positions % dilate == 0)
        product *= int(inside.sum())
    groups = re.search(r"\bbatch_group_count=(\d+)", text)
    return product // (int(groups[1]) if groups else 1)
