"""Layers of a transformer. Parameters, norms and softmax are float32, matrix products run in ``dtype``.

``block_stack`` makes blocks of them and runs many.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from mmjax.core.numerics import broadcast_parameter
from mmjax.core.row_sharding import constrain_rows, platform_of
from mmjax.models.attention.choice import Kernel
from mmjax.models.attention.kernels import HIDDEN_PRODUCT, attend, attend_cudnn, mark_saved
from mmjax.models.attention.short import attend_short
from mmjax.models.block_config import Activation, BlockConfig, BlockNorm, MatmulPrecision, MlpType, QkvBias
from mmjax.models.low_precision import product
from mmjax.models.positions import Rotation, rotate

Init = Callable[[jax.Array, tuple[int, ...]], jax.Array]


def normal(sd: float) -> Init:
    """Draws from N(0, sd²)."""
    return jax.nn.initializers.normal(sd)


def uniform(bound: float) -> Init:
    """Draws from U(-bound, bound)."""
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def activate(x: jax.Array, kind: Activation) -> jax.Array:
    """GELU, ``x·Φ(x)``, exact or in one of its two approximations (Hendrycks & Gimpel, arXiv:1606.08415)."""
    if kind == "gelu":
        return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return x * jax.nn.sigmoid(1.702 * x)


class Dense(nnx.Module):
    """``y = x·kernel + bias`` from the last ``len(inputs)`` axes of x to the axes ``outputs``.

    ``lora.add_adapters`` may add a low-rank map to it.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        *,
        init: Init,
        rngs: nnx.Rngs,
        dtype: Any,
        bias: bool = True,
        matmul_precision: MatmulPrecision = "full",
        join_rows: bool = False,
    ):
        self.inputs, self.outputs, self.dtype, self.matmul_precision = inputs, outputs, dtype, matmul_precision
        self.join_rows = join_rows
        self.kernel = nnx.Param(init(rngs.params(), (*inputs, *outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
        self.lora: nnx.Module | None = None

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., *inputs] -> [..., *outputs]."""
        lead = x.shape[: x.ndim - len(self.inputs)]
        x = x.reshape(*lead, math.prod(self.inputs)).astype(self.dtype)
        y = self._multiply(x, self.kernel[...].reshape(x.shape[-1], -1))
        if self.lora is not None:
            y = y + self.lora(x)
        if self.bias is not None:
            y = y + broadcast_parameter(self.bias[...].reshape(-1), y.shape, self.dtype)
        return y.reshape(*lead, *self.outputs)

    def _multiply(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        if self.matmul_precision != "full":
            return product(x, kernel, self.matmul_precision)
        kernel = kernel.astype(self.dtype)
        if self.join_rows:
            return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)
        return x @ kernel

    def join(self, others: Sequence[Dense], x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One product of x with the kernels of several layers like this one side by side, and their biases likewise.

        Args:
            others: The layers after this one.
            x: [..., width].

        Returns:
            [..., all outputs], and f32[all outputs].
        """
        layers = (self, *others)
        kernel = jnp.concatenate([layer.kernel[...].reshape(x.shape[-1], -1) for layer in layers], axis=1)
        y = self._multiply(x.astype(self.dtype), kernel)
        sizes = [math.prod(layer.outputs) for layer in layers]
        if any(layer.lora is not None for layer in layers):
            added = [
                jnp.zeros((*x.shape[:-1], size), self.dtype) if layer.lora is None else layer.lora(x)
                for layer, size in zip(layers, sizes, strict=True)
            ]
            y = y + jnp.concatenate(added, axis=-1)
        biases = [
            jnp.zeros(size) if layer.bias is None else layer.bias[...].reshape(-1)
            for layer, size in zip(layers, sizes, strict=True)
        ]
        return y, jnp.concatenate(biases)


class LayerNorm(nnx.Module):
    """``(x - mean) / sqrt(var + eps) · scale + bias`` over the last axis, in f32 (Ba et al., arXiv:1607.06450)."""

    def __init__(self, width: int, *, eps: float, dtype: Any):
        self.eps, self.dtype = eps, dtype
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., width] -> the same shape."""
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return (x * self.scale[...] + self.bias[...]).astype(self.dtype)


class LayerScale(nnx.Module):
    """A learned factor for each channel (Touvron et al., arXiv:2103.17239)."""

    def __init__(self, width: int, *, value: float, dtype: Any):
        self.dtype = dtype
        self.gamma = nnx.Param(jnp.full(width, value))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., width] -> the same shape."""
        return x * broadcast_parameter(self.gamma[...], x.shape, self.dtype)


def joins_rows(row_sharding: NamedSharding | None) -> bool:
    """Whether linear layers multiply [B,N,D] as [B·N,D].

    On a CPU the sum over B and N, a kernel's gradient, is otherwise computed from transposed copies of both. On a TPU
    joining the axes is itself a copy, unless tiles divide N.
    """
    return platform_of(row_sharding) == "cpu"


OF_TOWERS = ("mlp_ratio", "attention")
"""Fields of a tower's section that become others in ``BlockSpec``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """Sizes and initializers of a block."""

    width: int
    heads: int
    hidden: int
    activation: Activation
    ln_eps: float
    qk_norm: bool
    causal: bool
    init_qkv: Init
    init_out: Init
    init_fc1: Init
    init_fc2: Init
    matmul_precision: MatmulPrecision = "full"
    join_rows: bool = False
    attention: Kernel = "xla"
    block_norm: BlockNorm = "pre"
    mlp_type: MlpType = "mlp"
    qkv_bias: QkvBias = "qkv"
    scale_attn_inner: bool = False
    scale_fc: bool = False
    ls_init_value: float | None = None
    context_width: int | None = None  # of what blocks attend to besides themselves; None: no cross-attention

    @classmethod
    def from_config(cls, config: BlockConfig, **sizes: Any) -> BlockSpec:
        """The block of a tower's section, with what that section does not have."""
        return cls(
            **{f.name: getattr(config, f.name) for f in dataclasses.fields(BlockConfig) if f.name not in OF_TOWERS}
            | sizes
        )

    def make_dense(self, **options: Any) -> Callable[..., Dense]:
        """A constructor of the block's linear layers."""
        return functools.partial(Dense, matmul_precision=self.matmul_precision, join_rows=self.join_rows, **options)


class Attention(nnx.Module):
    """``attention.attend`` in ``heads`` heads, between linear maps; keys may have another width than queries."""

    def __init__(
        self, spec: BlockSpec, *, rngs: nnx.Rngs, dtype: Any, with_out: bool = True, keys_width: int | None = None
    ):
        self.kernel, self.causal = spec.attention, spec.causal
        split = (spec.heads, spec.width // spec.heads)
        dense = spec.make_dense(rngs=rngs, dtype=dtype)
        widths = {"q": spec.width, "k": keys_width or spec.width, "v": keys_width or spec.width}
        self.query, self.key, self.value = (
            dense((width,), split, init=spec.init_qkv, bias=name in spec.qkv_bias) for name, width in widths.items()
        )
        self.out = dense(split, (spec.width,), init=spec.init_out) if with_out else None
        norm = functools.partial(LayerNorm, eps=spec.ln_eps, dtype=dtype)
        self.ln_q = norm(split[1]) if spec.qk_norm else None
        self.ln_k = norm(split[1]) if spec.qk_norm else None
        self.ln_inner = norm(spec.width) if spec.scale_attn_inner else None

    def __call__(
        self,
        x: jax.Array,
        keys: jax.Array,
        *,
        mask: jax.Array | None = None,
        fused_length: int | None = None,
        rotations: tuple[Rotation, Rotation] | None = None,
        row_sharding: NamedSharding | None = None,
    ) -> jax.Array:
        """Attends from x to keys.

        Args:
            x: [B,Q,D].
            keys: [B,K,D or keys_width].
            mask: bool [B or 1, 1, Q, K] of the keys to attend to.
            fused_length: Take the fused kernel; x and keys are one, and end with this position.
            rotations: Of queries and of keys.
            row_sharding: How the keys lie over devices.

        Returns:
            [B,Q,D]; without the last linear map, [B,Q,H,D/H].
        """
        if fused_length is not None and self.kernel == "pallas":
            heads = self._attend_short(x, row_sharding)
        else:
            heads = self._attend_separately(
                x, keys, mask=mask, fused_length=fused_length, rotations=rotations, row_sharding=row_sharding
            )
        if self.ln_inner is not None:
            heads = self.ln_inner(heads.reshape(*heads.shape[:2], -1)).reshape(heads.shape)
        return heads if self.out is None else self.out(heads)

    def keys_values(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What ``attend_to`` attends to: [B,K,D] -> two of [B,K,H,D/H]."""
        k, v = self.key(keys), self.value(keys)
        return (k if self.ln_k is None else self.ln_k(k)), v

    def attend_to(self, x: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Attends from x [B,Q,D] to keys and values that were computed before, and may be a cache: [B,Q,D]."""
        q = self.query(x)
        heads = attend(q if self.ln_q is None else self.ln_q(q), k, v, mask=mask)
        if self.ln_inner is not None:
            heads = self.ln_inner(heads.reshape(*heads.shape[:2], -1)).reshape(heads.shape)
        return heads if self.out is None else self.out(heads)

    def _attend_short(self, x: jax.Array, row_sharding: NamedSharding | None) -> jax.Array:
        qkv, bias = self.query.join((self.key, self.value), constrain_rows(x, row_sharding))
        heads, width = self.query.outputs
        emulated = platform_of(row_sharding) != "tpu"
        attended = attend_short(mark_saved(qkv), bias, heads, self.causal, row_sharding, emulated)
        return mark_saved(attended).reshape(*x.shape[:2], heads, width)

    def _attend_separately(
        self,
        x: jax.Array,
        keys: jax.Array,
        *,
        mask: jax.Array | None,
        fused_length: int | None,
        rotations: tuple[Rotation, Rotation] | None,
        row_sharding: NamedSharding | None,
    ) -> jax.Array:
        # One constraint for each use: the two gradients are separate products until they are added up.
        q, k, v = (
            self.query(x),
            self.key(constrain_rows(keys, row_sharding)),
            self.value(constrain_rows(keys, row_sharding)),
        )
        if self.ln_q is not None and self.ln_k is not None:
            q, k = self.ln_q(q), self.ln_k(k)
        if rotations is not None:
            q, k = (rotate(heads, rotation) for heads, rotation in zip((q, k), rotations, strict=True))
        if fused_length is None:
            return attend(q, k, v, mask=mask)
        return attend_cudnn(q, k, v, causal=self.causal, length=fused_length, row_sharding=row_sharding)


class Mlp(nnx.Module):
    """Two linear layers with an activation between them, or a third whose SiLU multiplies the first (SwiGLU)."""

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs, dtype: Any):
        self.activation = spec.activation
        dense = spec.make_dense(rngs=rngs, dtype=dtype)
        self.fc1 = dense((spec.width,), (spec.hidden,), init=spec.init_fc1)
        self.fc2 = dense((spec.hidden,), (spec.width,), init=spec.init_fc2)
        swiglu = spec.mlp_type == "swiglu"
        self.gate = dense((spec.width,), (spec.hidden,), init=spec.init_fc1) if swiglu else None
        self.ln = LayerNorm(spec.hidden, eps=spec.ln_eps, dtype=dtype) if spec.scale_fc else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., width] -> the same shape."""
        hidden = mark_saved(self.fc1(x), name=HIDDEN_PRODUCT)
        if self.gate is None:
            hidden = activate(hidden, self.activation)
        else:
            hidden = jax.nn.silu(mark_saved(self.gate(x), name=HIDDEN_PRODUCT)) * hidden
        return self.fc2(hidden if self.ln is None else self.ln(hidden))
