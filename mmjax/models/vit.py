"""The image tower: a vision transformer (Dosovitskiy et al., arXiv:2010.11929), callable in stages."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from mmjax.core.config import ConfigError
from mmjax.core.numerics import broadcast_parameter
from mmjax.core.row_sharding import constrain_rows, platform_of
from mmjax.models.attention.choice import Kernel
from mmjax.models.block_config import BlockConfig, MatmulPrecision, Remat
from mmjax.models.block_stack import TowerOutput, run_blocks, stack_blocks
from mmjax.models.config import VisionConfig
from mmjax.models.layers import Attention, BlockSpec, Dense, LayerNorm, joins_rows, normal, uniform
from mmjax.models.positions import Position, Rotation
from mmjax.models.vision.frames import clear_padding, frame_mask, mean_of_valid
from mmjax.models.vision.gates import Gates
from mmjax.models.vision.pooling import AttentionalPooler, MapHead
from mmjax.models.vision.positions import rotary_angles, sin_cos_positions
from mmjax.models.vision.stems import make_stem


class VisionTower(nnx.Module):
    """``tower(images) == project(fuse(pool(embed(images))))``; ``pool`` and ``run`` can start at any block.

    Initial values follow open_clip's image tower, which keeps torch's defaults: Xavier-uniform for the fused
    query-key-value matrix, U(±1/√inputs) for the other kernels, N(0, 1/width) for the class token, positions and
    projection, zero for biases.
    """

    def __init__(
        self,
        config: VisionConfig,
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
        init = normal(width**-0.5)
        channels = sum(config.modality_channels) if config.fusion == "channels" else 3
        self.patch_embed = make_stem(config, channels=channels, rngs=rngs, dtype=dtype)
        has_cls = config.class_token and config.pool_type != "attn"
        self.cls = nnx.Param(init(rngs.params(), (width,))) if has_cls else None
        self.registers = nnx.Param(init(rngs.params(), (config.registers, width))) if config.registers else None
        learned = config.pos_embed_type == "learnable"
        positions = config.num_patches + (config.class_token and config.class_position)
        self.pos_embed = nnx.Param(init(rngs.params(), (positions, width))) if learned else None
        num_modalities = len(config.modalities) if config.fusion != "channels" and config.modality_embed else 1
        self.modality_embed = nnx.Param(init(rngs.params(), (num_modalities, width))) if num_modalities > 1 else None
        self.ln_pre = None if config.no_ln_pre else LayerNorm(width, eps=config.ln_eps, dtype=dtype)
        spec = block_spec(config)
        trunk_spec = dataclasses.replace(
            spec, matmul_precision=matmul_precision, join_rows=joins_rows(row_sharding), attention=attention
        )
        stack = functools.partial(stack_blocks, trunk_spec, layers=config.layers, rngs=rngs, dtype=dtype)
        self.blocks = stack() if config.layers else None
        self.scan, self.remat = scan, remat
        self.frozen_blocks = 0  # how many of the first blocks are not trained
        attention_pool = config.pool_type == "attn"
        pooler = config.attentional_pool
        pool_spec = dataclasses.replace(
            map_spec(config), width=embed_dim, heads=config.attn_pooler_heads, qk_norm=False
        )
        make_pooler = functools.partial(AttentionalPooler, pool_spec, rngs=rngs, dtype=dtype)
        queries, context = config.attn_pooler_queries, embed_dim if pooler == "cascade" else width
        self.attn_pooler = make_pooler(queries, key_width=width) if pooler != "none" else None
        one_more = pooler in ("cascade", "parallel")
        self.attn_pooler_contrastive = make_pooler(1, key_width=context) if one_more else None
        width = width if pooler == "none" else embed_dim
        self.ln_post = None if attention_pool else LayerNorm(width, eps=config.ln_eps, dtype=dtype)
        self.attn_pool = Attention(spec, rngs=rngs, dtype=dtype, with_out=False) if attention_pool else None
        self.map_head = MapHead(map_spec(config), rngs=rngs, dtype=dtype) if config.pool_type == "map" else None
        make_proj = functools.partial(Dense, (width,), (embed_dim,), init=init, bias=config.proj_bias)
        self.proj = make_proj(rngs=rngs, dtype=dtype) if config.proj_type == "linear" else None
        self.gates = Gates(config.modalities, width, rngs=rngs, dtype=dtype) if config.fusion == "gated" else None

    def __call__(self, images: Mapping[str, jax.Array], present: jax.Array | None = None) -> jax.Array:
        """Images {modality: u8[N,H,W,C]} -> f32[N',E], not normalized; ``present`` as in ``Gates``."""
        pooled = self.pool(self.embed(images), valid=self.valid(images))
        return self.project(self.fuse(pooled, self._names(images), present))

    def valid(self, images: Mapping[str, jax.Array]) -> jax.Array | None:
        """Which frames of sequences are no padding, bool[N,T]; None: there are no sequences."""
        return frame_mask(next(iter(images.values()))) if self.config.stem == "frames" else None

    def embed(self, images: Mapping[str, jax.Array]) -> jax.Array:
        """Images to the tokens that enter the first block: [N', T, width].

        Pixels are u8, or floats from 0 to 255; sequences are f32[N,T,D+1] (``mmjax.data.sequences.frames``). With
        fusion ``views`` or ``gated`` N' is N times the number of modalities present: all rows of one modality, then
        those of the next, in the order of the configuration.
        """
        config = self.config
        names = self._names(images)
        patches_of = self._patches
        if self.remat != "none" and config.stem == "patch" and platform_of(self.row_sharding) == "gpu":
            # Normalized pixels are larger than what they are made of, and a GPU has many rows of them.
            patches_of = jax.checkpoint(patches_of, policy=jax.checkpoint_policies.nothing_saveable)
        groups = [names] if config.fusion == "channels" else [[name] for name in names]
        raw = [patches_of({name: images[name] for name in group}) for group in groups]
        positions = self._positions()[int(config.class_token and config.class_position) :]
        patches = [p + broadcast_parameter(positions, p.shape, self.dtype) for p in raw]
        if self.modality_embed is not None:
            table = self.modality_embed[...]
            patches = [
                p + broadcast_parameter(table[config.modalities.index(m)], p.shape, self.dtype)
                for p, m in zip(patches, names, strict=True)
            ]
        axis = 1 if config.fusion == "tokens" else 0
        tokens = jnp.concatenate(patches, axis=axis)
        prefix = self._prefix_tokens(tokens.shape[0])
        if config.pool_type == "attn":
            mean = jnp.mean(jnp.concatenate(raw, axis=axis), axis=1, keepdims=True, dtype=jnp.float32)
            prefix = [(mean + self._positions()[0]).astype(self.dtype)]
        tokens = jnp.concatenate([*prefix, tokens], axis=1)
        return tokens if self.ln_pre is None else self.ln_pre(tokens)

    def pool(self, tokens: jax.Array, *, start: int = 0, valid: jax.Array | None = None) -> jax.Array:
        """Runs the blocks from ``start`` on, the final norm and pooling: [N', T, width] -> [N', width].

        If one token is pooled, the last block computes that token alone.
        """
        return self.run(tokens, start=start, valid=valid).pooled

    def run(
        self,
        tokens: jax.Array,
        *,
        start: int = 0,
        blocks: Collection[int] = (),
        with_sequence: bool = False,
        valid: jax.Array | None = None,
    ) -> TowerOutput:
        """``pool``, with the inputs of ``blocks`` on the way and, if asked for, all tokens of the end.

        Attention and a pooled mean see ``valid`` tokens bool[N', T] alone.
        """
        config = self.config
        whole = with_sequence or config.attentional_pool != "none"
        position: Position | None = 0 if config.pool_type == "tok" and not whole else None
        tokens, block_inputs = run_blocks(
            self.blocks,
            tokens,
            start=start,
            position=position,
            rotation=self._rotation(tokens),
            valid=valid,
            frozen=self.frozen_blocks,
            scan=self.scan,
            remat=self.remat,
            record=blocks,
            row_sharding=self.row_sharding,
        )
        if self.attn_pool is not None:
            heads = self.attn_pool(tokens[:, :1], tokens)
            return self._output(heads.reshape(heads.shape[0], -1), block_inputs, tokens if with_sequence else None)
        assert self.ln_post is not None
        if self.attn_pooler is not None:
            pooled, tokens = self._pool_by_queries(tokens)
            return self._output(pooled, block_inputs, tokens if with_sequence else None)
        if not config.final_ln_after_pool:
            tokens = self.ln_post(tokens)
        sequence = tokens if with_sequence else None
        if self.map_head is not None:
            return self._output(self.map_head(tokens), block_inputs, sequence)
        if config.pool_type == "avg":
            patches = tokens[:, config.class_token + config.registers :]
            pooled = mean_of_valid(patches, valid).astype(self.dtype)
        else:
            pooled = tokens[:, 0]
        pooled = self.ln_post(pooled) if config.final_ln_after_pool else pooled
        return self._output(pooled, block_inputs, sequence)

    def fuse(self, pooled: jax.Array, names: Sequence[str] = (), present: jax.Array | None = None) -> jax.Array:
        """With fusion ``gated`` one row for each example, as ``Gates`` says; otherwise ``pooled`` as it is."""
        if self.gates is None:
            return pooled
        return constrain_rows(self.gates(pooled, present, names=names or self.config.modalities), self.row_sharding)

    def project(self, pooled: jax.Array) -> jax.Array:
        """Projects to the joint space: [N', width] -> f32[N', E]."""
        # The constraint holds for the gradient too: each device receives the sum of its own rows only.
        projected = pooled if self.proj is None else self.proj(pooled)
        return constrain_rows(projected.astype(jnp.float32), self.row_sharding)

    def _pool_by_queries(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        assert self.attn_pooler is not None and self.ln_post is not None
        sequence = self.ln_post(self.attn_pooler(tokens))
        if self.attn_pooler_contrastive is not None:
            context = sequence if self.config.attentional_pool == "cascade" else tokens
            return self.ln_post(self.attn_pooler_contrastive(context))[:, 0], sequence
        if self.config.pool_type == "tok":
            return sequence[:, 0], sequence[:, 1:]
        return jnp.mean(sequence.astype(jnp.float32), axis=1).astype(self.dtype), sequence

    def _output(self, pooled: jax.Array, block_inputs: dict[int, jax.Array], sequence: jax.Array | None) -> TowerOutput:
        return TowerOutput(constrain_rows(pooled, self.row_sharding), block_inputs, sequence)

    def _names(self, images: Mapping[str, jax.Array]) -> list[str]:
        """The modalities of a batch, in the order of the configuration."""
        known = self.config.modalities
        names = [m for m in known if m in images]
        missing = [m for m in known if m not in images] if self.config.fusion == "channels" else []
        if len(names) != len(images) or missing or not names:
            raise ValueError(
                f"images={sorted(images)}: the tower takes {'all' if self.config.fusion == 'channels' else 'some'} of "
                f"{known}; set model.vision_cfg.modalities to what the data has"
            )
        return names

    def _normalize(self, name: str, pixels: jax.Array) -> jax.Array:
        config = self.config
        channels = config.modality_channels[config.modalities.index(name)]
        wanted = (config.image_size, config.image_size, channels)
        if pixels.shape[1:] != wanted:
            raise ValueError(f"images[{name!r}] has shape {pixels.shape}: expected [N, {', '.join(map(str, wanted))}]")
        mean, sd = np.array(config.image_mean, np.float32), np.array(config.image_std, np.float32)
        if channels == 1 and config.fusion != "channels":
            pixels = jnp.tile(pixels, (1, 1, 1, 3))
        elif channels != 3:
            mean, sd = mean.mean(keepdims=True), sd.mean(keepdims=True)
        return (pixels.astype(jnp.float32) / 255 - mean) / sd

    def _features(self, name: str, frames: jax.Array) -> jax.Array:
        wanted = (self.config.max_frames, self.config.modality_channels[0] + 1)
        if frames.shape[1:] != wanted:
            raise ValueError(f"images[{name!r}] has shape {frames.shape}: expected [N, {wanted[0]}, {wanted[1]}]")
        return clear_padding(frames)[..., :-1]

    def _patches(self, images: Mapping[str, jax.Array]) -> jax.Array:
        if self.config.stem == "frames":
            return self.patch_embed(self._features(*next(iter(images.items()))))
        tokens = self.patch_embed(jnp.concatenate([self._normalize(*image) for image in images.items()], axis=-1))
        return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])

    def _positions(self) -> jax.Array:
        config = self.config
        if self.pos_embed is not None:
            return self.pos_embed[...]
        class_token = config.class_token and config.class_position
        return jnp.asarray(sin_cos_positions(config.grid, config.width, class_token=class_token))

    def _rotation(self, tokens: jax.Array) -> Rotation | None:
        config = self.config
        if config.rope == "none":
            return None
        prefix = config.class_token + config.registers
        if tokens.shape[1] != prefix + config.grid**2:
            raise ConfigError(
                f"model.vision_cfg.rope={config.rope!r}: {tokens.shape[1] - prefix} of {config.grid**2} patches are "
                "left, and their positions are unknown; leave out augment=patch_dropout"
            )
        angles = rotary_angles(config)[None]
        angles = np.pad(angles, ((0, 0), (prefix, 0), (0, 0)))  # the tokens before the patches are not turned
        return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)

    def _prefix_tokens(self, n: int) -> list[jax.Array]:
        prefix = []
        if self.cls is not None:
            cls = self.cls[...]
            prefix.append((cls + self._positions()[0] if self.config.class_position else cls)[None])
        if self.registers is not None:
            prefix.append(self.registers[...])
        return [broadcast_parameter(x, (n, *x.shape), self.dtype) for x in prefix]


def block_spec(config: VisionConfig) -> BlockSpec:
    """The image tower's block, with the initial values of open_clip (torch's defaults)."""
    hidden = int(config.width * config.mlp_ratio)
    return BlockSpec.from_config(
        config,
        width=config.width,
        heads=config.heads,
        hidden=hidden,
        causal=False,
        init_qkv=uniform((1.5 / config.width) ** 0.5),
        init_out=uniform(config.width**-0.5),
        init_fc1=uniform(config.width**-0.5),
        init_fc2=uniform(hidden**-0.5),
    )


def map_spec(config: VisionConfig) -> BlockSpec:
    """The sizes of attention pooling, which has none of the blocks' variants but the norm of queries and keys."""
    ratio = config.map_mlp_ratio or config.mlp_ratio
    plain = BlockConfig(activation=config.activation, ln_eps=config.ln_eps, qk_norm=config.qk_norm)
    spec = block_spec(dataclasses.replace(config, **dataclasses.asdict(plain) | {"mlp_ratio": ratio}))
    return dataclasses.replace(spec, heads=config.map_heads or config.heads)
