"""The parts of a pre-norm transformer; parameters are float32, products run in ``dtype``, norms and softmax in f32.

Blocks of a tower are one ``Block`` whose every parameter has a leading layer axis: see ``stacked`` and ``run``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding

from mmjax.core.row_sharding import constrain_rows
from mmjax.models.config import Activation, MatmulPrecision, Remat
from mmjax.models.low_precision import product

Init = Callable[[jax.Array, tuple[int, ...]], jax.Array]
Row = int | jax.Array
"""One position of each sequence: the same for all, or i32[B]."""


def normal(sd: float) -> Init:
    """Draws from N(0, sd²)."""
    return jax.nn.initializers.normal(sd)


def uniform(bound: float) -> Init:
    """Draws from U(-bound, bound)."""
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def keep(x: jax.Array) -> jax.Array:
    """Marks what a block keeps for its backward pass under ``remat="dots"`` and ``"offload"``."""
    return checkpoint_name(x, "product")


def activate(x: jax.Array, kind: Activation) -> jax.Array:
    """GELU, ``x·Φ(x)``, exact or in one of its two approximations (Hendrycks & Gimpel, arXiv:1606.08415)."""
    if kind == "gelu":
        return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return x * jax.nn.sigmoid(1.702 * x)


class Dense(nnx.Module):
    """``y = x·kernel + bias`` from the last ``len(inputs)`` axes of x to the axes ``outputs``."""

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
    ):
        self.inputs, self.outputs, self.dtype, self.matmul_precision = inputs, outputs, dtype, matmul_precision
        self.kernel = nnx.Param(init(rngs.params(), (*inputs, *outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., *inputs] -> [..., *outputs]."""
        lead = x.shape[: x.ndim - len(self.inputs)]
        rows = x.reshape(-1, math.prod(self.inputs)).astype(self.dtype)
        kernel = self.kernel[...].reshape(rows.shape[1], -1)
        if self.matmul_precision == "full":
            y = rows @ kernel.astype(self.dtype)
        else:
            y = product(rows, kernel, self.matmul_precision)
        if self.bias is not None:
            y = y + self.bias[...].reshape(-1).astype(self.dtype)
        return y.reshape(*lead, *self.outputs)


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """Sizes and starting values of a block's parts."""

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


class Attention(nnx.Module):
    """``softmax(q·kᵀ/√d)·v`` in ``heads`` heads (Vaswani et al., arXiv:1706.03762)."""

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs, dtype: Any):
        split = (spec.heads, spec.width // spec.heads)
        dense = functools.partial(Dense, rngs=rngs, dtype=dtype, matmul_precision=spec.matmul_precision)
        make = functools.partial(dense, (spec.width,), split, init=spec.init_qkv)
        self.query, self.key, self.value = make(), make(), make()
        self.out = dense(split, (spec.width,), init=spec.init_out)
        norm = functools.partial(LayerNorm, split[1], eps=spec.ln_eps, dtype=dtype)
        self.ln_q = norm() if spec.qk_norm else None
        self.ln_k = norm() if spec.qk_norm else None

    def __call__(
        self, x: jax.Array, keys: jax.Array, *, mask: jax.Array | None = None, row_sharding: NamedSharding | None = None
    ) -> jax.Array:
        """x [B,Q,D], keys [B,K,D], mask bool [B or 1, 1, Q, K] of what may be seen -> [B,Q,D]."""
        # Each use for itself, as the gradients by keys are products of their own before they are added up.
        q, k, v = (
            self.query(x),
            self.key(constrain_rows(keys, row_sharding)),
            self.value(constrain_rows(keys, row_sharding)),
        )
        if self.ln_q is not None and self.ln_k is not None:
            q, k = self.ln_q(q), self.ln_k(k)
        # Heads go before positions once here, not in each of the six products of the two passes.
        q, k, v = (keep(jnp.swapaxes(part, 1, 2)) for part in (q * q.shape[-1] ** -0.5, k, v))
        logits = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
        if mask is not None:
            logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
        weights = keep(jax.nn.softmax(logits, axis=-1)).astype(v.dtype)
        return self.out(keep(jnp.swapaxes(jnp.einsum("bhqk,bhkd->bhqd", weights, v), 1, 2)))


class Mlp(nnx.Module):
    """Two layers with an activation between."""

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs, dtype: Any):
        self.activation = spec.activation
        dense = functools.partial(Dense, rngs=rngs, dtype=dtype, matmul_precision=spec.matmul_precision)
        self.fc1 = dense((spec.width,), (spec.hidden,), init=spec.init_fc1)
        self.fc2 = dense((spec.hidden,), (spec.width,), init=spec.init_fc2)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., width] -> the same shape."""
        return self.fc2(activate(keep(self.fc1(x)), self.activation))


class Block(nnx.Module):
    """``x += attn(ln_1(x)); x += mlp(ln_2(x))``."""

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs, dtype: Any):
        self.causal = spec.causal
        self.ln_1 = LayerNorm(spec.width, eps=spec.ln_eps, dtype=dtype)
        self.attn = Attention(spec, rngs=rngs, dtype=dtype)
        self.ln_2 = LayerNorm(spec.width, eps=spec.ln_eps, dtype=dtype)
        self.mlp = Mlp(spec, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        x: jax.Array,
        *,
        valid: jax.Array | None,
        row: Row | None = None,
        row_sharding: NamedSharding | None = None,
    ) -> jax.Array:
        """x [B,N,D], valid bool[B,N] of the keys that count -> [B,N,D], or [B,1,D]: position ``row`` alone."""
        keys = self.ln_1(x)
        queries = keys if row is None else take(keys, row)
        x = x if row is None else take(x, row)
        x = keep(
            x
            + self.attn(queries, keys, mask=self._mask(keys.shape[1], valid=valid, row=row), row_sharding=row_sharding)
        )
        return x + self.mlp(self.ln_2(x))

    def _mask(self, length: int, *, valid: jax.Array | None, row: Row | None) -> jax.Array | None:
        mask = None if valid is None else valid[:, None, None, :]
        if self.causal:
            positions = jnp.arange(length)
            at = positions[None] if row is None else take(positions[None, :, None], row)[..., 0]
            before = at[:, None, :, None] >= positions
            mask = before if mask is None else mask & before
        return mask


def take(x: jax.Array, row: Row) -> jax.Array:
    """Position ``row`` of each sequence: [B or 1, N, D] -> [B, 1, D]."""
    if isinstance(row, int):
        return x[:, row][:, None]
    x = jnp.broadcast_to(x, (row.shape[0], *x.shape[1:]))
    return jnp.take_along_axis(x, row[:, None, None], axis=1)


def stacked(spec: BlockSpec, *, layers: int, rngs: nnx.Rngs, dtype: Any) -> Block:
    """``layers`` blocks as one, each parameter [layers, ...]; every layer draws its own values."""

    @nnx.vmap(in_axes=0, out_axes=0)
    def create(key: jax.Array) -> Block:
        return Block(spec, rngs=nnx.Rngs(params=key), dtype=dtype)

    return create(jax.random.split(rngs.params(), layers))


_POLICIES = {
    # Norms and activations are cheap to compute again from the products before them, and large to keep.
    "dots": jax.checkpoint_policies.save_only_these_names("product"),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["product"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def run(
    blocks: Block,
    x: jax.Array,
    *,
    start: int = 0,
    stop: int | None = None,
    scan: bool,
    remat: Remat,
    valid: jax.Array | None = None,
    row: Row | None = None,
    before: Collection[int] = (),
    row_sharding: NamedSharding | None = None,
) -> tuple[jax.Array, dict[int, jax.Array]]:
    """Blocks ``start`` to ``stop`` (not included) of a stack: x [B,N,D] -> [B,N,D], and what enters ``before``.

    With ``row`` the result is [B,1,D], that position of each sequence, and the last block computes queries, the
    attention's output and the MLP for it alone: the same numbers for 7 % less work in a tower of twelve blocks.

    The blocks of ``before`` (from ``start`` to ``stop``, which stands for what leaves the last one) do not change
    the rest of the program: a loop in parts would be rounded otherwise than the whole one.

    With ``row_sharding`` what enters and leaves a block has its sequences over those devices.
    """
    graph, state = nnx.split(blocks)
    params = nnx.to_pure_dict(state)
    depth = blocks.ln_1.scale.shape[0]
    stop = depth if stop is None else stop
    if not 0 <= start <= stop <= depth:
        raise ValueError(f"blocks {start} to {stop}: the tower has {depth}")

    def apply(x: jax.Array, layer: dict[str, Any], *, row: Row | None = None) -> jax.Array:
        def block(x: jax.Array, layer: dict[str, Any]) -> jax.Array:
            return nnx.merge(graph, layer)(x, valid=valid, row=row, row_sharding=row_sharding)

        if remat != "none":
            block = jax.checkpoint(block, policy=_POLICIES[remat], prevent_cse=not scan)
        return constrain_rows(block(constrain_rows(x, row_sharding), layer), row_sharding)

    if not all(start <= k <= stop for k in before):
        raise ValueError(f"what enters blocks {sorted(before)}: only {start} to {stop} are run")
    whole = stop - (row is not None and stop > start)  # the blocks before this one are computed for every position
    found: dict[int, jax.Array] = {}
    if scan and whole - start > 1:
        _, layers, last, _ = _split(params, (start, whole - start, stop - whole, depth - stop))
        inside = [k for k in sorted(before) if k < whole]

        def body(carry: tuple[jax.Array, list[jax.Array]], at: tuple[jax.Array, dict[str, Any]]) -> Any:
            (x, kept), (k, layer) = carry, at
            kept = [
                jnp.where(k == wanted, jax.lax.optimization_barrier(x), y)
                for wanted, y in zip(inside, kept, strict=True)
            ]
            return (apply(x, layer), kept), None

        (x, kept), _ = jax.lax.scan(body, (x, [jnp.zeros_like(x)] * len(inside)), (jnp.arange(start, whole), layers))
        found = dict(zip(inside, kept, strict=True))
    else:
        _, *singles, last, _ = _split(params, (start, *[1] * (whole - start), stop - whole, depth - stop))
        for k, layer in enumerate(singles, start):
            if k in before:
                found[k] = x
            x = apply(x, _only(layer))
    if whole in before:
        found[whole] = x
    if row is None:
        return x, found
    if whole == stop:
        return take(x, row), found
    if stop in before:
        found[stop] = apply(jax.lax.optimization_barrier(x), _only(last))
    return apply(x, _only(last), row=row), found


def _split(params: dict[str, Any], sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Runs of layers; the gradient of one split is one concatenation, that of slices would be a sum of padded ones."""
    leaves, tree = jax.tree.flatten(params)
    parts = zip(*(jax.lax.split(leaf, sizes) for leaf in leaves), strict=True)
    return [jax.tree.unflatten(tree, part) for part in parts]


def _only(layer: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(lambda p: p[0], layer)
