"""Blocks: one of them, and those of a tower as one stacked module, which runs by ``scan`` and ``remat``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from mmjax.core.row_sharding import constrain_rows, num_shards, pin_layout, platform_of
from mmjax.models.attention.kernels import CUDNN_FORWARD, CUDNN_LENGTH_MULTIPLE, HIDDEN_PRODUCT, PRODUCT, mark_saved
from mmjax.models.block_config import Remat
from mmjax.models.layers import Attention, BlockSpec, Dense, LayerNorm, LayerScale, Mlp
from mmjax.models.positions import Position, Rotation, rotation_at, take_position

_OFFLOAD_PRODUCTS = jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[PRODUCT, HIDDEN_PRODUCT],
    offload_src="device",
    offload_dst="pinned_host",
)


def _with_fused_kernel(policy: Callable[..., Any]) -> Callable[..., Any]:
    """``policy``, and what cuDNN's forward kernel returns: jax gives it no name, and it would run twice."""

    def saves(primitive: Any, *arguments: Any, **params: Any) -> Any:
        return primitive.name == CUDNN_FORWARD or policy(primitive, *arguments, **params)

    return saves


_REMAT_POLICIES = {
    # Norms and activations are cheap to recompute from the saved products, and large to keep.
    "dots": _with_fused_kernel(jax.checkpoint_policies.save_only_these_names(PRODUCT, HIDDEN_PRODUCT)),
    # The MLP's hidden layer is the widest thing to keep, and costs a ninth more FLOPs of the step to make again.
    "attention": _with_fused_kernel(jax.checkpoint_policies.save_only_these_names(PRODUCT)),
    "offload": _with_fused_kernel(_OFFLOAD_PRODUCTS),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class TowerOutput(NamedTuple):
    """What a tower makes of its tokens."""

    pooled: jax.Array  # [N, width], before the projection
    block_inputs: dict[int, jax.Array]  # what entered the blocks that were asked for
    sequence: jax.Array | None  # [N, T, width]: all tokens after the last norm, or before it if that is after pooling


class Block(nnx.Module):
    """``x += attn(ln_1(x)); x += mlp(ln_2(x))``, or the same with the norms of ``block_norm``.

    With a ``context_width`` there is ``x += cross_attn(ln_cross(x), context)`` between the two.
    """

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs, dtype: Any):
        self.causal, self.block_norm = spec.causal, spec.block_norm
        self.ln_1 = LayerNorm(spec.width, eps=spec.ln_eps, dtype=dtype)
        self.attn = Attention(spec, rngs=rngs, dtype=dtype)
        self.ln_2 = LayerNorm(spec.width, eps=spec.ln_eps, dtype=dtype)
        self.mlp = Mlp(spec, rngs=rngs, dtype=dtype)
        value, context = spec.ls_init_value, spec.context_width
        scale = None if value is None else functools.partial(LayerScale, spec.width, value=value, dtype=dtype)
        self.ls_1 = None if scale is None else scale()
        self.ls_2 = None if scale is None else scale()
        cross = context is not None
        self.ln_cross = LayerNorm(spec.width, eps=spec.ln_eps, dtype=dtype) if cross else None
        self.cross_attn = Attention(spec, rngs=rngs, dtype=dtype, keys_width=context) if cross else None
        self.ls_cross = scale() if cross and scale is not None else None

    def __call__(
        self,
        x: jax.Array,
        *,
        valid: jax.Array | None,
        length: int | None = None,
        position: Position | None = None,
        rotation: Rotation | None = None,
        context: jax.Array | None = None,
        context_valid: jax.Array | None = None,
        row_sharding: NamedSharding | None = None,
    ) -> jax.Array:
        """x [B,N,D] -> [B,N,D], or [B,1,D] for ``position`` alone; ``valid`` bool[B,N] masks keys.

        ``length``, if any, is that of the sequences without the padding for a fused kernel. Of its ``context``
        [B,K,context_width] a block with cross-attention sees ``context_valid`` bool[B,K], or all.
        """
        length = x.shape[1] if length is None else length
        keys = self.ln_1(x) if self.block_norm == "pre" else x
        queries = keys if position is None else take_position(keys, position)
        x = x if position is None else take_position(x, position)
        fused = self.attn.kernel != "xla" and valid is None and position is None
        fused = fused and x.shape[0] % num_shards(row_sharding) == 0
        mask = None if fused else self._mask(keys.shape[1], length=length, valid=valid, position=position)
        rotations = None if rotation is None else (rotation_at(rotation, position), rotation)
        fused_length = length if fused else None
        attended = self.attn(
            queries, keys, mask=mask, fused_length=fused_length, rotations=rotations, row_sharding=row_sharding
        )
        if self.cross_attn is None or context is None:
            return self.complete(x, attended)
        mask = None if context_valid is None else context_valid[:, None, None, :]
        attend_context = functools.partial(self.cross_attn, keys=context, mask=mask, row_sharding=row_sharding)
        return self.complete(x, attended, attend_context=attend_context)

    def complete(
        self, x: jax.Array, attended: jax.Array, *, attend_context: Callable[[jax.Array], jax.Array] | None = None
    ) -> jax.Array:
        """The rest of the block, of its input, of what attention makes of it, and of attention to a context."""
        x = mark_saved(self._add(x, attended, norm=self.ln_1, scale=self.ls_1))
        if attend_context is not None and self.ln_cross is not None:
            queries = self.ln_cross(x) if self.block_norm == "pre" else x
            x = mark_saved(self._add(x, attend_context(queries), norm=self.ln_cross, scale=self.ls_cross))
        return self._add(x, self.mlp(self.ln_2(x) if self.block_norm == "pre" else x), norm=self.ln_2, scale=self.ls_2)

    def _add(self, x: jax.Array, y: jax.Array, *, norm: LayerNorm, scale: LayerScale | None) -> jax.Array:
        y = norm(y) if self.block_norm == "res_post" else y
        y = y if scale is None else scale(y)
        return norm(x + y) if self.block_norm == "post" else x + y

    def _mask(
        self, padded: int, *, length: int, valid: jax.Array | None, position: Position | None
    ) -> jax.Array | None:
        mask = None if valid is None else valid[:, None, None, :]
        positions = jnp.arange(padded)
        if length < padded:
            mask = (positions < length)[None, None, None, :]
        if self.causal:
            queries = positions[None] if position is None else take_position(positions[None, :, None], position)[..., 0]
            causal = queries[:, None, :, None] >= positions
            mask = causal if mask is None else mask & causal
        return mask


def stack_blocks(spec: BlockSpec, *, layers: int, rngs: nnx.Rngs, dtype: Any, make: Callable[..., Any] = Block) -> Any:
    """``layers`` blocks as one, each parameter [layers, ...]; every layer draws its own values."""

    @nnx.vmap(in_axes=0, out_axes=0)
    def create(key: jax.Array) -> nnx.Module:
        return make(spec, rngs=nnx.Rngs(params=key), dtype=dtype)

    return create(jax.random.split(rngs.params(), layers))


def run_joint_blocks(
    blocks: nnx.Module,
    x: jax.Array,
    *,
    scan: bool,
    remat: Remat,
    row_sharding: NamedSharding | None = None,
    **options: Any,
) -> jax.Array:
    """Runs all blocks of a stack of another kind than ``Block``, with the same ``options`` for each.

    Args:
        blocks: From ``stack_blocks``, called as ``block(x, **options)``.
        x: [B,N,D].
        scan, remat, row_sharding: As in ``run_blocks``.

    Returns:
        [B,N,D].
    """
    graph, state = nnx.split(blocks)
    params = nnx.to_pure_dict(state)

    def block(x: jax.Array, layer: dict[str, Any]) -> jax.Array:
        return constrain_rows(nnx.merge(graph, layer)(constrain_rows(x, row_sharding), **options), row_sharding)

    if remat != "none":
        block = jax.checkpoint(block, policy=_REMAT_POLICIES[remat], prevent_cse=not scan)
    depth = jax.tree.leaves(params)[0].shape[0]
    if scan and depth > 1:
        return jax.lax.scan(lambda x, layer: (block(x, layer), None), x, params)[0]
    for layer in _split_layers(params, (1,) * depth):
        x = block(x, _unstack(layer))
    return x


def run_blocks(
    blocks: Block | None,
    x: jax.Array,
    *,
    start: int = 0,
    stop: int | None = None,
    frozen: int = 0,
    scan: bool,
    remat: Remat,
    valid: jax.Array | None = None,
    position: Position | None = None,
    rotation: Rotation | None = None,
    record: Collection[int] = (),
    context: jax.Array | None = None,
    context_valid: jax.Array | None = None,
    row_sharding: NamedSharding | None = None,
) -> tuple[jax.Array, dict[int, jax.Array]]:
    """Runs blocks ``start`` to ``stop`` (not included) of a stack.

    Args:
        blocks: From ``stack_blocks``; None: a tower without blocks.
        x: [B,N,D].
        start: The first block.
        stop: The block after the last one; None: all.
        frozen: The blocks before this one are not trained; no gradient goes back into them unless one must pass.
        scan: Loop with ``jax.lax.scan`` instead of unrolling.
        remat: What each block keeps for the backward pass.
        valid: bool[B,N], the keys that attention may see; None: all.
        position: Return this position of each sequence alone. The last block then computes queries, the attention's
            output and the MLP for it only: the same numbers for 7 % less work in a tower of twelve blocks.
        rotation: Of queries and keys, for rotary positions.
        record: Blocks whose inputs to return as well; ``stop`` stands for the output of the last block. Recording
            does not change the rest of the program, whereas several shorter loops would round differently.
        context: [B,K,context_width], what blocks with cross-attention attend to as well.
        context_valid: bool[B,K], its keys that they may see; None: all.
        row_sharding: How the sequences lie over devices between blocks.

    Returns:
        [B,N,D], or [B,1,D] with ``position``; and the inputs of the blocks in ``record``.
    """
    depth = 0 if blocks is None else blocks.ln_1.scale.shape[0]
    stop = depth if stop is None else stop
    if not 0 <= start <= stop <= depth:
        raise ValueError(f"blocks {start} to {stop}: the tower has {depth}")
    if not all(start <= k <= stop for k in record):
        raise ValueError(f"record={sorted(record)}: only blocks {start} to {stop} run")
    if blocks is None:
        return x if position is None else take_position(x, position), dict.fromkeys(record, x)
    graph, state = nnx.split(blocks)
    if start < frozen < stop:  # two loops, because of one all layers have a gradient or none
        run = functools.partial(
            run_blocks,
            scan=scan,
            remat=remat,
            valid=valid,
            rotation=rotation,
            context=context,
            context_valid=context_valid,
            row_sharding=row_sharding,
        )
        constant = nnx.merge(graph, jax.lax.stop_gradient(state))
        x, before = run(constant, x, start=start, stop=frozen, record=[k for k in record if k < frozen])
        after = [k for k in record if k >= frozen]
        x, inputs = run(blocks, x, start=frozen, stop=stop, position=position, record=after)
        return x, before | inputs
    length = x.shape[1]
    padding = -length % CUDNN_LENGTH_MULTIPLE if blocks.attn.kernel == "cudnn" and valid is None else 0
    if padding:
        x = _pad_positions(x, padding)
        rotation = (
            None if rotation is None else (_pad_positions(rotation[0], padding), _pad_positions(rotation[1], padding))
        )
    params = nnx.to_pure_dict(state)
    if not scan:  # a loop casts a layer's kernels in its products, which moves fewer bytes on TPUs
        params = _cast_kernels(params, blocks.mlp.fc1)

    def apply(x: jax.Array, layer: dict[str, Any], *, position: Position | None = None) -> jax.Array:
        def block(x: jax.Array, layer: dict[str, Any]) -> jax.Array:
            options: dict[str, Any] = {
                "valid": valid,
                "length": length,
                "position": position,
                "rotation": rotation,
                "context": context,
                "context_valid": context_valid,
                "row_sharding": row_sharding,
            }
            return nnx.merge(graph, layer)(x, **options)

        if remat != "none":
            block = jax.checkpoint(block, policy=_REMAT_POLICIES[remat], prevent_cse=not scan)
        x = block(pin_layout(constrain_rows(x, row_sharding), row_sharding), layer)
        return pin_layout(constrain_rows(x, row_sharding), row_sharding)

    full = stop - (position is not None and stop > start)  # the blocks before this one compute every position
    inputs = {}
    if scan and full - start > 1:
        _, layers, last, _ = _split_layers(params, (start, full - start, stop - full, depth - stop))
        recorded = [k for k in sorted(record) if k < full]

        def body(carry: tuple[jax.Array, list[jax.Array]], layer: tuple[jax.Array, dict[str, Any]]) -> Any:
            (x, kept), (k, weights) = carry, layer
            kept = [
                jnp.where(k == index, jax.lax.optimization_barrier(x), y)
                for index, y in zip(recorded, kept, strict=True)
            ]
            return (apply(x, weights), kept), None

        (x, kept), _ = jax.lax.scan(body, (x, [jnp.zeros_like(x)] * len(recorded)), (jnp.arange(start, full), layers))
        inputs = dict(zip(recorded, kept, strict=True))
    else:
        _, *singles, last, _ = _split_layers(params, (start, *[1] * (full - start), stop - full, depth - stop))
        for k, layer in enumerate(singles, start):
            if k in record:
                inputs[k] = x
            x = apply(x, _unstack(layer))
    if full in record:
        inputs[full] = x
    if position is not None and full < stop and stop in record:
        inputs[stop] = apply(jax.lax.optimization_barrier(x), _unstack(last))
    inputs = {k: y[:, :length] for k, y in inputs.items()}
    if position is None:
        return x[:, :length], inputs
    if full == stop:
        return take_position(x, position), inputs
    if (
        platform_of(row_sharding) == "gpu"
    ):  # otherwise the biases of the last block's keys are made as large as the keys at the very start
        x, last = jax.lax.optimization_barrier((x, last))
    return apply(x, _unstack(last), position=position), inputs


def _cast_kernels(params: dict[str, Any], dense: Dense) -> dict[str, Any]:
    """Casts kernels as ``dense`` does in each product, but all layers at once: half as much is kept of them."""
    if dense.matmul_precision != "full":
        return params
    return {
        name: _cast_kernels(x, dense) if isinstance(x, dict) else x.astype(dense.dtype) if name == "kernel" else x
        for name, x in params.items()
    }


def _pad_positions(x: jax.Array, padding: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, padding), (0, 0)))


def _split_layers(params: dict[str, Any], sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Groups of layers. One split has one concatenation as its gradient, slices would have a sum of padded arrays."""
    leaves, tree = jax.tree.flatten(params)
    groups = zip(*(jax.lax.split(leaf, sizes) for leaf in leaves), strict=True)
    return [jax.tree.unflatten(tree, group) for group in groups]


def _unstack(layer: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(lambda p: p[0], layer)
