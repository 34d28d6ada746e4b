"""The blocks of a tower as one stacked module: how they are made, and how they run (``scan``, ``remat``)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import NamedSharding

from mmjax.core.row_sharding import constrain_rows, platform_of
from mmjax.models.attention.kernels import CUDNN_FORWARD, CUDNN_LENGTH_MULTIPLE
from mmjax.models.block_config import Remat
from mmjax.models.layers import Block, BlockSpec
from mmjax.models.positions import Position, Rotation, take_position

_OFFLOAD_PRODUCTS = jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=["product"],
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
    "dots": _with_fused_kernel(jax.checkpoint_policies.save_only_these_names("product")),
    "offload": _with_fused_kernel(_OFFLOAD_PRODUCTS),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class TowerOutput(NamedTuple):
    """What a tower makes of its tokens."""

    pooled: jax.Array  # [N, width], before the projection
    block_inputs: dict[int, jax.Array]  # what entered the blocks that were asked for
    sequence: jax.Array | None  # [N, T, width]: all tokens after the last norm, or before it if that is after pooling


def stack_blocks(spec: BlockSpec, *, layers: int, rngs: nnx.Rngs, dtype: Any) -> Block:
    """``layers`` blocks as one, each parameter [layers, ...]; every layer draws its own values."""

    @nnx.vmap(in_axes=0, out_axes=0)
    def create(key: jax.Array) -> Block:
        return Block(spec, rngs=nnx.Rngs(params=key), dtype=dtype)

    return create(jax.random.split(rngs.params(), layers))


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
            run_blocks, scan=scan, remat=remat, valid=valid, rotation=rotation, row_sharding=row_sharding
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
    pinned = platform_of(row_sharding) == "gpu"

    def apply(x: jax.Array, layer: dict[str, Any], *, position: Position | None = None) -> jax.Array:
        def block(x: jax.Array, layer: dict[str, Any]) -> jax.Array:
            options: dict[str, Any] = {
                "valid": valid,
                "length": length,
                "position": position,
                "rotation": rotation,
                "row_sharding": row_sharding,
            }
            return nnx.merge(graph, layer)(x, **options)

        if remat != "none":
            block = jax.checkpoint(block, policy=_REMAT_POLICIES[remat], prevent_cse=not scan)
        x = block(_pin_layout(constrain_rows(x, row_sharding), pinned=pinned), layer)
        return _pin_layout(constrain_rows(x, row_sharding), pinned=pinned)

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
    return take_position(x, position) if full == stop else apply(x, _unstack(last), position=position), inputs


def _pad_positions(x: jax.Array, padding: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, padding), (0, 0)))


def _pin_layout(x: jax.Array, *, pinned: bool) -> jax.Array:
    """``x`` [B,N,D] with D innermost in memory; on GPUs the compiler otherwise takes B, and norms become slow."""
    return with_layout_constraint(x, Layout((0, 1, 2))) if pinned else x


def _split_layers(params: dict[str, Any], sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Groups of layers. One split has one concatenation as its gradient, slices would have a sum of padded arrays."""
    leaves, tree = jax.tree.flatten(params)
    groups = zip(*(jax.lax.split(leaf, sizes) for leaf in leaves), strict=True)
    return [jax.tree.unflatten(tree, group) for group in groups]


def _unstack(layer: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(lambda p: p[0], layer)
