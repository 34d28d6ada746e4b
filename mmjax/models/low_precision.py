"""Matrix products of 8-bit numbers: quantised on the way in, row by row, and scaled back on the way out."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.config import ConfigError
from mmjax.models.config import MatmulPrecision

_TINY = 1e-30  # what a row of zeros is divided by

_NUMBERS: dict[MatmulPrecision, tuple[Any, Any]] = {
    "int8": (jnp.int8, jnp.int8),
    # Gradients range further and need less precision (Micikevicius et al., arXiv:2209.05433).
    "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2),
}
"""The numbers that values and those that gradients become."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, precision: MatmulPrecision) -> jax.Array:
    """``x·kernel`` of 8-bit numbers: [N, K] and [K, M] -> [N, M] in the dtype of x.

    SwitchBack (Wortsman et al. 2023, arXiv:2304.13013), with q(v) the rows of v divided by their largest magnitude,
    on the scale of the 8-bit numbers and rounded, and s(v) what to multiply by again::

        y       = s(x) s(kernelᵀ)ᵀ ∘ (q(x) · q(kernelᵀ)ᵀ)
        ∂L/∂x   = s(g) s(kernel)ᵀ ∘ (q(g) · q(kernel)ᵀ),     g = ∂L/∂y
        ∂L/∂kernel = xᵀ · g

    The last product sums over all tokens of a batch and stays in the dtype of x: its rounding errors would add up.
    """
    return _rounded(x, kernel.T, _NUMBERS[precision][0], _NUMBERS[precision][0]).astype(x.dtype)


def _forward(
    x: jax.Array, kernel: jax.Array, precision: MatmulPrecision
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, kernel, precision), (x, kernel)


def _backward(
    precision: MatmulPrecision, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    values, gradients = _NUMBERS[precision]
    by_x = _rounded(gradient, kernel, gradients, values)
    by_kernel = jax.lax.dot_general(x, gradient, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return by_x.astype(x.dtype), by_kernel.astype(kernel.dtype)


product.defvjp(_forward, _backward)


def _rounded(a: jax.Array, b: jax.Array, of_a: Any, of_b: Any) -> jax.Array:
    """``a·bᵀ`` of the rows of both in 8 bits: [N, K] and [M, K] -> f32[N, M]."""
    (a, scale_a), (b, scale_b) = quantised(a, of_a), quantised(b, of_b)
    whole = jnp.int32 if of_a == jnp.int8 else jnp.float32
    summed = jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=whole)
    return summed.astype(jnp.float32) * scale_a * scale_b.T


def quantised(rows: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Each row on the scale of ``dtype``, and what to multiply by again: [N, K] -> dtype [N, K], f32[N, 1]."""
    rows = rows.astype(jnp.float32)
    most = float(jnp.iinfo(dtype).max if dtype == jnp.int8 else jnp.finfo(dtype).max)
    scale = jnp.maximum(jnp.max(jnp.abs(rows), axis=1, keepdims=True), _TINY) / most
    scaled = rows / scale
    return (jnp.round(scaled) if dtype == jnp.int8 else jnp.clip(scaled, -most, most)).astype(dtype), scale


def check_matmul_precision(precision: MatmulPrecision, device: jax.Device) -> None:
    """Raises where the compiler of ``device`` does not take such products: tried on the smallest."""
    if precision == "full":
        return
    here = jax.sharding.SingleDeviceSharding(device)
    values, gradients = _NUMBERS[precision]
    for left in (values, gradients):
        a, b = (jax.ShapeDtypeStruct((16, 16), dtype, sharding=here) for dtype in (left, values))
        whole = jnp.int32 if precision == "int8" else jnp.float32
        multiply = functools.partial(jax.lax.dot_general, preferred_element_type=whole)
        try:
            jax.jit(lambda a, b, multiply=multiply: multiply(a, b, (((1,), (1,)), ((), ())))).lower(a, b).compile()
        except (jax.errors.JaxRuntimeError, NotImplementedError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            raise ConfigError(
                f"model.matmul_precision={precision!r}: {device.device_kind} cannot multiply such numbers ({reason}); "
                "use 'full', or the other of 'int8' and 'fp8'"
            ) from None
