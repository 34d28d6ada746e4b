"""Attention of short sequences as one Pallas kernel for TPUs: the logits of a head stay in the chip's fast memory.

A program of the kernel has all positions of a few sequences, for which jax's own kernels pad to tiles of 128 and write
softmax statistics to memory. It takes the joined product of queries, keys and values before their biases are added,
and its backward pass makes the softmax again from it: nothing else is kept. Logits lie transposed, [keys, queries], so
that sums over keys go along sublanes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

_POSITIONS = 320
"""About how many positions a program has; more would not fit beside their logits."""

_HEADS_AT_ONCE = 2
"""Heads whose products are written side by side, so that one's softmax overlaps with another's products."""

_MASKED = -1e30


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def attend_short(
    qkv: jax.Array,
    bias: jax.Array,
    heads: int,
    causal: bool,
    row_sharding: NamedSharding | None,
    interpret: bool,
) -> jax.Array:
    """``softmax(q·kᵀ/√d)·v`` of ``qkv + bias``.

    Args:
        qkv: [B,N,3·D], queries, then keys, then values, each head after head.
        bias: f32[3·D].
        heads: Of width d = D / heads.
        causal: Whether a position sees itself and those before it alone.
        row_sharding: How sequences lie over devices; each device runs the kernel on its own.
        interpret: Compute what the kernel would, on any device.

    Returns:
        [B,N,D].
    """
    run = functools.partial(_run_forward, heads=heads, causal=causal, interpret=interpret)
    return _each_device(run, row_sharding, in_rows=(True, False), num_outputs=1)(qkv, bias)


def _forward(qkv: jax.Array, bias: jax.Array, *options: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return attend_short(qkv, bias, *options), (qkv, bias)


def _backward(
    heads: int,
    causal: bool,
    row_sharding: NamedSharding | None,
    interpret: bool,
    residuals: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    run = functools.partial(_run_backward, heads=heads, causal=causal, interpret=interpret)
    by_qkv, by_bias = _each_device(run, row_sharding, in_rows=(True, False, True), num_outputs=2)(*residuals, gradient)
    return by_qkv, jnp.sum(by_bias, axis=(0, 1))


attend_short.defvjp(_forward, _backward)


def _each_device(run: Any, row_sharding: NamedSharding | None, *, in_rows: tuple[bool, ...], num_outputs: int) -> Any:
    """``run`` on each device's rows of the arguments that have rows, and of all results."""
    if row_sharding is None or row_sharding.mesh.size == 1:
        return run
    rows = row_sharding.spec
    return jax.shard_map(
        run,
        mesh=row_sharding.mesh,
        in_specs=tuple(rows if split else PartitionSpec() for split in in_rows),
        out_specs=rows if num_outputs == 1 else (rows,) * num_outputs,
        check_vma=False,  # pallas_call does not say how its results vary
    )


def _run_forward(qkv: jax.Array, bias: jax.Array, **options: Any) -> jax.Array:
    [result] = _call(_forward_kernel, (qkv, bias), **options)
    return result


def _run_backward(qkv: jax.Array, bias: jax.Array, gradient: jax.Array, **options: Any) -> tuple[jax.Array, jax.Array]:
    by_qkv, by_bias = _call(_backward_kernel, (qkv, bias, gradient), **options)
    return by_qkv, by_bias


def _call(kernel: Any, arrays: tuple[jax.Array, ...], *, heads: int, causal: bool, interpret: bool) -> Any:
    qkv, bias, *gradients = arrays
    b, n, joined = qkv.shape
    width = joined // 3
    rows = next(rows for rows in range(min(b, max(1, _POSITIONS // n)), 0, -1) if b % rows == 0)

    def block(size: int, part: int = 0) -> pl.BlockSpec:
        return pl.BlockSpec((rows, n, size), lambda i, part=part: (i, 0, part))

    outputs = [(block(width), jax.ShapeDtypeStruct((b, n, width), qkv.dtype))]
    if gradients:
        outputs = [
            (block(joined), jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)),
            (
                pl.BlockSpec((1, 1, joined), lambda i: (i, 0, 0)),
                jax.ShapeDtypeStruct((b // rows, 1, joined), jnp.float32),
            ),
        ]
    products = 5 if gradients else 2
    results = [shape for _, shape in outputs]
    touched: list[Any] = [qkv, *gradients, *results]
    return pl.pallas_call(
        functools.partial(kernel, heads=heads, causal=causal),
        grid=(b // rows,),
        in_specs=[
            *(block(width, part) for part in range(3)),
            pl.BlockSpec((1, joined), lambda i: (0, 0)),
            *(block(width) for _ in gradients),
        ],
        out_specs=[spec for spec, _ in outputs],
        out_shape=results,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * b * n * n * width,
            transcendentals=b * heads * n * n,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in touched),
        ),
        name=kernel.__name__.strip("_"),
        interpret=interpret,
    )(qkv, qkv, qkv, bias[None], *gradients)


def _forward_kernel(q: Any, k: Any, v: Any, bias: Any, out: Any, *, heads: int, causal: bool) -> None:
    for group in _groups(out.shape, heads):
        queries, keys, values = (
            [_load(ref, bias, part, index) for index in group] for part, ref in enumerate((q, k, v))
        )
        weights = [_softmax(_multiply_nt(a, b), causal, a.shape[1]) for a, b in zip(keys, queries, strict=True)]
        for index, w, x in zip(group, weights, values, strict=True):
            out[index] = _multiply_tn(w.astype(x.dtype), x).astype(out.dtype)


def _backward_kernel(
    q: Any, k: Any, v: Any, bias: Any, gradient: Any, by_qkv: Any, by_bias: Any, *, heads: int, causal: bool
) -> None:
    dtype, width = by_qkv.dtype, gradient.shape[2]
    sums: dict[Any, jax.Array] = {}
    for group in _groups(gradient.shape, heads):
        queries, keys, values = (
            [_load(ref, bias, part, index) for index in group] for part, ref in enumerate((q, k, v))
        )
        gradients = [gradient[index] for index in group]
        scale = queries[0].shape[1] ** -0.5
        weights = [_softmax(_multiply_nt(a, b), causal, a.shape[1]) for a, b in zip(keys, queries, strict=True)]
        by_weights = [_multiply_nt(a, b) for a, b in zip(values, gradients, strict=True)]
        for index, qs, ks, g, w, dw in zip(group, queries, keys, gradients, weights, by_weights, strict=True):
            by_logits = (w * (dw - jnp.sum(w * dw, axis=0, keepdims=True)) * scale).astype(dtype)
            products = _multiply_tn(by_logits, ks), _multiply(by_logits, qs), _multiply(w.astype(dtype), g)
            for part, x in enumerate(products):
                lanes = _lanes(index, part, width)
                by_qkv[index[0], :, lanes] = x.astype(dtype)
                total = jnp.sum(x, axis=0, keepdims=True)
                key = lanes.start, lanes.stop
                sums[key] = sums[key] + total if key in sums else total
    for (start, stop), total in sums.items():
        by_bias[0, :, start:stop] = total


def _groups(shape: tuple[int, ...], heads: int) -> Iterator[list[Any]]:
    """Indices of each head of each sequence of a block [rows, N, D], a few at a time."""
    rows, _, width = shape
    each = width // heads
    every = [(row, slice(None), slice(h * each, (h + 1) * each)) for row in range(rows) for h in range(heads)]
    return (every[i : i + _HEADS_AT_ONCE] for i in range(0, len(every), _HEADS_AT_ONCE))


def _lanes(index: Any, part: int, width: int) -> slice:
    return slice(part * width + index[2].start, part * width + index[2].stop)


def _load(ref: Any, bias: Any, part: int, index: Any) -> jax.Array:
    return (ref[index].astype(jnp.float32) + bias[0:1, _lanes(index, part, ref.shape[2])]).astype(ref.dtype)


def _softmax(logits: jax.Array, causal: bool, head_width: int) -> jax.Array:
    """Over keys: f32[keys, queries]."""
    logits = logits * head_width**-0.5
    if causal:
        keys, queries = (lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1))
        logits = jnp.where(keys <= queries, logits, _MASKED)
    e = jnp.exp(logits - jnp.max(logits, axis=0, keepdims=True))
    return e * (1.0 / jnp.sum(e, axis=0, keepdims=True))


def _product(left: int, right: int) -> Any:
    dimensions = (((left,), (right,)), ((), ()))
    return functools.partial(lax.dot_general, dimension_numbers=dimensions, preferred_element_type=jnp.float32)


_multiply, _multiply_nt, _multiply_tn = _product(1, 0), _product(1, 1), _product(0, 0)
"""``a·b``, ``a·bᵀ`` and ``aᵀ·b`` with sums in f32."""
