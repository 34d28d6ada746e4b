"""The text tower: a transformer over tokens, with the same methods as the image tower."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from mmjax.core.config import ConfigError
from mmjax.core.row_sharding import constrain_rows
from mmjax.models.attention.cached import KeyValues, next_of_block, run_next
from mmjax.models.attention.choice import Kernel
from mmjax.models.block_config import MatmulPrecision, Remat
from mmjax.models.block_stack import TowerOutput, run_blocks, stack_blocks
from mmjax.models.config import TextConfig
from mmjax.models.layers import BlockSpec, Dense, LayerNorm, activate, joins_rows, normal
from mmjax.models.positions import Position, take_position


class TextTower(nnx.Module):
    """``tower(ids) == project(pool(embed(ids), ids))``; ``pool`` and ``run`` can start at any block.

    Initial values are CLIP's: N(0, 1/width) for queries, keys, values and the projection, N(0, 1/(2·width)) for an
    MLP's first matrix, N(0, 1/(2·layers·width)) for both matrices that write to the residual stream, zero for biases.
    """

    def __init__(
        self,
        config: TextConfig,
        *,
        embed_dim: int,
        scan: bool,
        remat: Remat,
        matmul_precision: MatmulPrecision,
        attention: Kernel = "xla",
        rngs: nnx.Rngs,
        dtype: Any,
        row_sharding: NamedSharding | None = None,
    ):
        self.config, self.dtype, self.row_sharding = config, dtype, row_sharding
        width = config.width
        self.token_embed = TokenEmbed(_from_tokenizer(config, "vocab_size"), width, sd=config.token_init_sd, rngs=rngs)
        self.masked = config.masks_padding
        self.pad_id = _from_tokenizer(config, "pad_id") if self.masked or config.positions_from_pad else None
        self.eos_id = _from_tokenizer(config, "eos_id") if config.pool_type == "eos" else None
        first = self.pad_id + 1 if self.pad_id is not None and config.positions_from_pad else 0
        positions = config.num_positions or config.context_length + first + config.embed_cls
        self.pos_embed = nnx.Param(normal(config.position_init_sd)(rngs.params(), (positions, width)))
        vector = normal(config.position_init_sd)
        self.cls_embed = nnx.Param(vector(rngs.params(), (width,))) if config.embed_cls else None
        kinds = config.token_types
        self.type_embed = nnx.Param(normal(config.token_init_sd)(rngs.params(), (kinds, width))) if kinds else None
        norm = functools.partial(LayerNorm, width, eps=config.ln_eps, dtype=dtype)
        self.ln_embed = norm() if config.embed_norm else None
        spec = dataclasses.replace(
            block_spec(config),
            matmul_precision=matmul_precision,
            join_rows=joins_rows(row_sharding),
            attention=attention,
        )
        stack = functools.partial(stack_blocks, spec, layers=config.layers, rngs=rngs, dtype=dtype)
        self.blocks = stack() if config.layers else None
        self.scan, self.remat = scan, remat
        self.frozen_blocks = 0  # how many of the first blocks are not trained
        self.ln_final = None if config.block_norm == "post" else norm()
        linear = functools.partial(Dense, init=normal(width**-0.5), rngs=rngs, dtype=dtype)
        self.pooler = linear((width,), (width,)) if config.pool_tanh else None
        hidden = (width + embed_dim) // 2 if config.proj_type == "mlp" else width
        self.proj_hidden = linear((width,), (hidden,), bias=config.proj_bias) if config.proj_type == "mlp" else None
        self.proj = linear((hidden,), (embed_dim,), bias=config.proj_bias) if config.proj_type != "none" else None

    def __call__(self, ids: jax.Array) -> jax.Array:
        """ids i32[M,L] -> f32[M,E], not normalized."""
        return self.project(self.pool(self.embed(ids), ids))

    def embed(
        self, ids: jax.Array, *, masked: jax.Array | None = None, mask_vector: jax.Array | None = None
    ) -> jax.Array:
        """Token and position embeddings: i32[M,L] -> [M,L,width]; L may be shorter than the context.

        With ``embed_cls`` there is one more, the class token at the end. ``masked`` bool[M,L] are words in whose place
        ``mask_vector`` f32[width] stands.
        """
        length = ids.shape[1]
        if length > self.config.context_length:
            raise ValueError(
                f"{length} tokens per text: more than model.text_cfg.context_length={self.config.context_length}"
            )
        tokens = self.token_embed(ids)
        if masked is not None and mask_vector is not None:
            tokens = jnp.where(masked[..., None], mask_vector, tokens)
        if self.cls_embed is not None:
            last = jnp.broadcast_to(self.cls_embed[...], (len(ids), 1, tokens.shape[2]))
            tokens = jnp.concatenate([tokens, last], axis=1)
        tokens = tokens + self._positions(ids)
        if self.type_embed is not None:
            tokens = tokens + self.type_embed[...][0]
        return tokens.astype(self.dtype) if self.ln_embed is None else self.ln_embed(tokens)

    def next(self, cache: KeyValues, ids: jax.Array, position: jax.Array) -> tuple[jax.Array, KeyValues]:
        """One token of each text after those of the cache: i32[M] at ``position`` -> its row [M,1,width] of ``run``."""
        tokens = self.token_embed(ids[:, None]) + jax.lax.dynamic_slice_in_dim(self.pos_embed[...], position, 1)
        if self.type_embed is not None:
            tokens = tokens + self.type_embed[...][0]
        tokens = tokens.astype(self.dtype) if self.ln_embed is None else self.ln_embed(tokens)
        assert self.blocks is not None
        step = functools.partial(next_of_block, position=position)
        tokens, cache = run_next(self.blocks, tokens, cache, step)
        return self._finish(tokens), cache

    def pool(self, tokens: jax.Array, ids: jax.Array, *, start: int = 0) -> jax.Array:
        """Runs the blocks from ``start`` on, the final norm and pooling: [M,L,width] -> [M,width].

        If one token is pooled, the last block computes that token alone.
        """
        return self.run(tokens, ids, start=start).pooled

    def run(
        self,
        tokens: jax.Array,
        ids: jax.Array,
        *,
        start: int = 0,
        blocks: Collection[int] = (),
        with_sequence: bool = False,
    ) -> TowerOutput:
        """``pool``, with the inputs of ``blocks`` on the way and, if asked for, all tokens of the end."""
        valid = self._valid(ids)
        position = self._position(ids)
        tokens, block_inputs = run_blocks(
            self.blocks,
            tokens,
            start=start,
            frozen=self.frozen_blocks,
            scan=self.scan,
            remat=self.remat,
            valid=valid,
            position=None if with_sequence else position,
            record=blocks,
            row_sharding=self.row_sharding,
        )
        tokens = self._finish(tokens)
        if position is not None:
            pooled = (take_position(tokens, position) if with_sequence else tokens)[:, 0]
        else:
            assert valid is not None
            weight = valid.astype(jnp.float32)[..., None]
            total = jnp.sum(tokens.astype(jnp.float32) * weight, axis=1)
            pooled = (total / jnp.maximum(jnp.sum(weight, axis=1), 1)).astype(self.dtype)
        if self.ln_final is not None and self.config.final_ln_after_pool:
            pooled = self.ln_final(pooled)
        if self.pooler is not None:
            pooled = jnp.tanh(self.pooler(pooled))
        sequence = tokens[:, : ids.shape[1]] if with_sequence else None  # without the class token
        return TowerOutput(constrain_rows(pooled, self.row_sharding), block_inputs, sequence)

    def project(self, pooled: jax.Array) -> jax.Array:
        """Projects to the joint space: [M,width] -> f32[M,E]."""
        hidden = pooled if self.proj_hidden is None else activate(self.proj_hidden(pooled), "gelu")
        projected = hidden if self.proj is None else self.proj(hidden)
        return constrain_rows(projected.astype(jnp.float32), self.row_sharding)

    def _finish(self, tokens: jax.Array) -> jax.Array:
        return tokens if self.ln_final is None or self.config.final_ln_after_pool else self.ln_final(tokens)

    def _valid(self, ids: jax.Array) -> jax.Array | None:
        valid = jnp.not_equal(ids, self.pad_id) if self.masked and self.pad_id is not None else None
        if self.cls_embed is None or valid is None:
            return valid
        always = jnp.ones_like(valid[:, :1])
        # As in open_clip: its released models mask the position after each padding token in place of that token.
        return jnp.concatenate([valid, always] if self.config.correct_cls_mask else [always, valid], axis=1)

    def _positions(self, ids: jax.Array) -> jax.Array:
        if not self.config.positions_from_pad:
            return self.pos_embed[...][: ids.shape[1] + self.config.embed_cls]
        assert self.pad_id is not None
        valid = (ids != self.pad_id).astype(jnp.int32)
        return jnp.take(self.pos_embed[...], jnp.cumsum(valid, axis=1) * valid + self.pad_id, axis=0)

    def _position(self, ids: jax.Array) -> Position | None:
        pool = self.config.pool_type
        if self.config.embed_cls:
            return ids.shape[1]
        if pool == "argmax":
            return jnp.argmax(ids, axis=1)
        if pool == "eos":
            return jnp.argmax(ids == self.eos_id, axis=1)
        return {"first": 0, "last": ids.shape[1] - 1}.get(pool)


class TokenEmbed(nnx.Module):
    """One learned vector for each token of the vocabulary."""

    def __init__(self, size: int, width: int, *, sd: float, rngs: nnx.Rngs):
        self.embedding = nnx.Param(normal(sd)(rngs.params(), (size, width)))

    def __call__(self, ids: jax.Array) -> jax.Array:
        """i32[...] -> f32[..., width]."""
        return jnp.take(self.embedding[...], ids, axis=0)


def block_spec(config: TextConfig) -> BlockSpec:
    """The text tower's block, with CLIP's initial values."""
    residual = normal((2 * max(config.layers, 1) * config.width) ** -0.5)
    return BlockSpec.from_config(
        config,
        width=config.width,
        heads=config.heads,
        hidden=int(config.width * config.mlp_ratio),
        causal=not config.no_causal_mask,
        init_qkv=normal(config.width**-0.5),
        init_out=residual,
        init_fc1=normal((2 * config.width) ** -0.5),
        init_fc2=residual,
    )


def _from_tokenizer(config: TextConfig, name: str) -> int:
    value = getattr(config, name)
    if value is None:
        raise ConfigError(f"model.text_cfg.{name}=None: comes from the tokenizer; call with_tokenizer first, or set it")
    return value
