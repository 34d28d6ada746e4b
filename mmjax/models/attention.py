"""``softmax(q·kᵀ/√d)·v`` (Vaswani et al., arXiv:1706.03762), without the linear maps around it.

``attend`` leaves it to the compiler, ``attend_fused`` takes a kernel of cuDNN that never writes the logits to memory.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding

from mmjax.core.row_sharding import constrain_rows
from mmjax.models.config import ClipConfig, TextConfig, VisionConfig

Kernel = Literal["xla", "cudnn"]

CUDNN_LENGTH_MULTIPLE = 2
"""jax refuses cuDNN's backward pass for odd lengths."""

CUDNN_FORWARD = "dot_product_attention_fwd_wrapper"
"""The name that jax gives to cuDNN's forward kernel as an operation of a traced program."""


@dataclasses.dataclass(frozen=True)
class KernelChoice:
    """What computes attention in a tower's blocks, and why it is no other; the reason is empty if that was asked for.

    Where a block computes a single query it always is ``xla``.
    """

    kernel: Kernel
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.kernel} ({self.reason})" if self.reason else self.kernel


def choose_kernel(
    model: ClipConfig, tower: VisionConfig | TextConfig, *, dtype: Any, platform: str | None
) -> KernelChoice:
    """The kernel for ``tower`` of ``model`` in programs for ``platform``; None: any, so the compiler's products."""
    wanted = tower.attention or model.attention
    if wanted == "xla":
        return KernelChoice("xla")
    obstacle = _cudnn_obstacle(tower, dtype=dtype, platform=platform)
    if obstacle is None:
        return KernelChoice("cudnn")
    if wanted == "auto" and platform != "gpu":
        return KernelChoice("xla")
    return KernelChoice("xla", f"no cudnn: {obstacle}")


@functools.cache
def _cudnn_is_installed() -> bool:
    x = jax.ShapeDtypeStruct((1, 2, 1, 8), jnp.bfloat16)
    try:
        jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), x, x, x)
    except RuntimeError:
        return False
    return True


def _cudnn_obstacle(tower: VisionConfig | TextConfig, *, dtype: Any, platform: str | None) -> str | None:
    head_width = tower.width // tower.heads
    if platform != "gpu":
        return f"the platform is {platform or 'unknown'}"
    if not _cudnn_is_installed():
        return "cuDNN is not installed"
    if dtype != jnp.bfloat16:
        return "precision is not bfloat16"
    if head_width % 8 or head_width > 128:
        return f"heads are {head_width} wide"
    if isinstance(tower, TextConfig) and tower.masks_padding:
        return "padding is masked"
    return None


def mark_saved(x: jax.Array) -> jax.Array:
    """Marks a value that ``remat="dots"`` and ``"offload"`` keep for the backward pass."""
    return checkpoint_name(x, "product")


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


def attend_fused(
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
