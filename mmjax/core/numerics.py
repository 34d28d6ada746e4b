"""Small numeric helpers that several packages share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

DTYPES: dict[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
"""The types of matrix products by the name that ``precision`` gives them."""

EXCLUDED = -1e30
"""The logit of an excluded entry: finite, unlike -inf, so that 0 · EXCLUDED is 0 and gradients stay finite."""


def masked_mean(x: jax.Array, where: jax.Array) -> jax.Array:
    """The float32 mean of the entries of ``x`` at which ``where``, of the same shape, is true; 0 if there are none.

    >>> masked_mean(jnp.array([1.0, 5.0, 3.0]), jnp.array([True, False, True])).item()
    2.0
    """
    count = jnp.sum(where, dtype=jnp.float32)
    return jnp.sum(jnp.where(where, x.astype(jnp.float32), 0.0)) / jnp.maximum(count, 1.0)


def broadcast_parameter(parameter: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """A parameter that many rows share, one copy for each, in their ``dtype``.

    Cast after it is broadcast: the gradient of a broadcast is a sum over its copies, which so is taken in the
    parameter's own float32. In bfloat16 a sum of many rows stops growing once it is 256 times each of them.
    """
    return jnp.broadcast_to(parameter, shape).astype(dtype)
