"""``softmax(q·kᵀ/√d)·v`` (Vaswani et al., arXiv:1706.03762), without the linear maps around it.

``attend`` leaves it to the compiler. Fused kernels never write the logits to memory: ``attend_cudnn``, and
``short``, which takes in the linear maps' biases too.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding

from mmjax.core.row_sharding import constrain_rows

CUDNN_LENGTH_MULTIPLE = 2
"""jax refuses cuDNN's backward pass for odd lengths."""

CUDNN_FORWARD = "dot_product_attention_fwd_wrapper"
"""The name that jax gives to cuDNN's forward kernel as an operation of a traced program."""


PRODUCT, HIDDEN_PRODUCT = "product", "hidden product"
"""Names of what may be kept for the backward pass; the second is as wide as the MLP's hidden layer."""


def mark_saved(x: jax.Array, *, name: str = PRODUCT) -> jax.Array:
    """Marks a value that ``remat="dots"`` and ``"offload"`` keep for the backward pass, ``"attention"`` by ``name``."""
    return checkpoint_name(x, name)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None) -> jax.Array:
    """Attends from each query to the keys, in every head.

    Args:
        q: [B,Q,H,d].
        k: [B,K,H,d].
        v: [B,K,H,d].
        mask: bool [B or 1, 1, Q, K] of the keys to attend to.

    Returns:
        [B,Q,H,d].
    """
    # Move heads before positions once, instead of in each of the six products of forward and backward pass.
    q, k, v = (mark_saved(jnp.swapaxes(heads, 1, 2)) for heads in (q * q.shape[-1] ** -0.5, k, v))
    logits = _logits(q, k)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = _softmax(logits, v.dtype)
    return mark_saved(jnp.swapaxes(jnp.einsum("bhqk,bhkd->bhqd", weights, v), 1, 2))


def attend_cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, length: int, row_sharding: NamedSharding | None
) -> jax.Array:
    """``attend`` by cuDNN's kernel: [B,N,H,d] each, of which keys from ``length`` on count for nothing."""
    queries_end = keys_end = None
    if not causal and length < q.shape[1]:  # from within a causal sequence nothing is seen of what follows its end
        # Queries beyond the end attend as well: their results are finite, and nobody reads them.
        queries_end, keys_end = (
            constrain_rows(jnp.full(q.shape[:1], end, jnp.int32), row_sharding) for end in (q.shape[1], length)
        )
    q, k, v = (mark_saved(heads) for heads in (q, k, v))
    heads = jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=causal,
        query_seq_lengths=queries_end,
        key_value_seq_lengths=keys_end,
        implementation="cudnn",
    )
    return mark_saved(heads)


@jax.custom_vjp
def _logits(q: jax.Array, k: jax.Array) -> jax.Array:
    """``q·kᵀ`` in f32, with a gradient that is rounded to the dtype of q before it is multiplied."""
    return jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)


def _logits_backward(residuals: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    q, k = residuals
    gradient = gradient.astype(q.dtype)  # otherwise both products would be of f32 numbers
    return jnp.einsum("bhqk,bhkd->bhqd", gradient, k), jnp.einsum("bhqk,bhqd->bhkd", gradient, q)


_logits.defvjp(lambda q, k: (_logits(q, k), (q, k)), _logits_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _softmax(logits: jax.Array, dtype: Any) -> jax.Array:
    """The softmax in f32, rounded to ``dtype``; the backward pass needs nothing but the rounded values."""
    return jax.nn.softmax(logits, axis=-1).astype(dtype)


def _softmax_forward(logits: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    weights = mark_saved(jax.nn.softmax(logits, axis=-1).astype(dtype))  # a mark within _softmax would not be seen here
    return weights, weights


def _softmax_backward(dtype: Any, weights: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    weights = weights.astype(jnp.float32)
    weighted = weights * gradient.astype(jnp.float32)
    return (weighted - weights * jnp.sum(weighted, axis=-1, keepdims=True),)


_softmax.defvjp(_softmax_forward, _softmax_backward)
