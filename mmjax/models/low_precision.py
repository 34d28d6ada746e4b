"""Matrix products in 8 bits: rows are quantized before, the result is scaled back after."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.config import ConfigError
from mmjax.models.block_config import MatmulPrecision

_TINY = 1e-30  # the smallest scale, so that a row of zeros is not divided by zero

_FORMATS: dict[MatmulPrecision, tuple[Any, Any]] = {
    "int8": (jnp.int8, jnp.int8),
    # Gradients range further and need less precision (Micikevicius et al., arXiv:2209.05433).
    "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2),
}
"""Formats of values and of gradients."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, precision: MatmulPrecision) -> jax.Array:
    """``x·kernel`` in 8 bits: [..., K] and [K, M] -> [..., M] in the dtype of x.

    SwitchBack (Wortsman et al. 2023, arXiv:2304.13013). With q(v) the rows of v, scaled to the range of the 8-bit
    format by their largest magnitude and rounded, and s(v) the factors that undo the scaling::

        y       = s(x) s(kernelᵀ)ᵀ ∘ (q(x) · q(kernelᵀ)ᵀ)
        ∂L/∂x   = s(g) s(kernel)ᵀ ∘ (q(g) · q(kernel)ᵀ),     g = ∂L/∂y
        ∂L/∂kernel = xᵀ · g

    The last product sums over all tokens of a batch, where rounding errors would add up: it stays in the dtype of x.
    """
    return _quantized_product(x, kernel.T, _FORMATS[precision][0], _FORMATS[precision][0]).astype(x.dtype)


def _forward(x: Any, kernel: Any, precision: MatmulPrecision) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array]]:
    """Of a frozen kernel nothing is kept to compute its gradient."""
    return product(x.value, kernel.value, precision), (x.value if kernel.perturbed else None, kernel.value)


def _backward(
    precision: MatmulPrecision, residuals: tuple[jax.Array | None, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    x, kernel = residuals
    value_format, gradient_format = _FORMATS[precision]
    by_x = _quantized_product(gradient, kernel, gradient_format, value_format).astype(gradient.dtype)
    if x is None:
        return by_x, None
    lead = tuple(range(x.ndim - 1))
    by_kernel = jax.lax.dot_general(x, gradient, ((lead, lead), ((), ())), preferred_element_type=jnp.float32)
    return by_x, by_kernel.astype(kernel.dtype)


product.defvjp(_forward, _backward, symbolic_zeros=True)


def _quantized_product(a: jax.Array, b: jax.Array, format_a: Any, format_b: Any) -> jax.Array:
    """``a·bᵀ`` with the rows of both in 8 bits: [..., K] and [M, K] -> f32[..., M]."""
    (a, scale_a), (b, scale_b) = quantize_rows(a, format_a), quantize_rows(b, format_b)
    accumulator = jnp.int32 if format_a == jnp.int8 else jnp.float32
    summed = jax.lax.dot_general(a, b, (((a.ndim - 1,), (1,)), ((), ())), preferred_element_type=accumulator)
    return summed.astype(jnp.float32) * scale_a * scale_b.T


def quantize_rows(rows: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Each row scaled to the range of ``dtype``, and the factor to undo it: [..., K] -> dtype[..., K], f32[..., 1]."""
    rows = rows.astype(jnp.float32)
    largest = float(jnp.iinfo(dtype).max if dtype == jnp.int8 else jnp.finfo(dtype).max)
    scale = jnp.maximum(jnp.max(jnp.abs(rows), axis=-1, keepdims=True), _TINY) / largest
    scaled = rows / scale
    return (jnp.round(scaled) if dtype == jnp.int8 else jnp.clip(scaled, -largest, largest)).astype(dtype), scale


def check_matmul_precision(precision: MatmulPrecision, device: jax.Device) -> None:
    """Raises if ``device`` cannot multiply in this format; tries it by compiling a small product."""
    if precision == "full":
        return
    sharding = jax.sharding.SingleDeviceSharding(device)
    value_format, gradient_format = _FORMATS[precision]
    for left in (value_format, gradient_format):
        a, b = (jax.ShapeDtypeStruct((16, 16), dtype, sharding=sharding) for dtype in (left, value_format))
        accumulator = jnp.int32 if precision == "int8" else jnp.float32
        multiply = functools.partial(jax.lax.dot_general, preferred_element_type=accumulator)
        try:
            jax.jit(lambda a, b, multiply=multiply: multiply(a, b, (((1,), (1,)), ((), ())))).lower(a, b).compile()
        except (jax.errors.JaxRuntimeError, NotImplementedError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            raise ConfigError(
                f"model.matmul_precision={precision!r}: {device.device_kind} cannot multiply such numbers ({reason}); "
                "use 'full', or the other of 'int8' and 'fp8'"
            ) from None
