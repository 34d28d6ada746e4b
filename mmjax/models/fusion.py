"""The fusion encoder: the tokens of both towers together, by cross-attention or as one sequence."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from mmjax.core.numerics import broadcast_parameter
from mmjax.core.row_sharding import constrain_rows
from mmjax.models.block_config import MatmulPrecision, Remat
from mmjax.models.block_stack import run_blocks, stack_blocks
from mmjax.models.config import TextConfig
from mmjax.models.joint_config import FusionConfig
from mmjax.models.layers import BlockSpec, Dense, LayerNorm, activate, normal


class FusionEncoder(nnx.Module):
    """Reads image tokens and text tokens, and says whether they match and which words are missing.

    ``kind="cross"`` are the last six layers of ALBEF's BERT (Li et al. 2021, arXiv:2107.07651; TCL has the same): in
    each the text attends to itself, then to the image, then comes an MLP. ``kind="joint"`` is the transformer of ViLT
    (Kim et al. 2021, arXiv:2102.03334) over both sequences, text first, each with a vector of its kind added.

    The first position of the text stands for the pair. Initial values are those of the text tower.
    """

    def __init__(
        self,
        config: FusionConfig,
        *,
        image_width: int,
        text: TextConfig,
        scan: bool,
        remat: Remat,
        matmul_precision: MatmulPrecision,
        rngs: nnx.Rngs,
        dtype: Any,
        row_sharding: NamedSharding | None = None,
    ):
        assert text.vocab_size is not None and text.eos_id is not None
        self.config, self.dtype, self.row_sharding = config, dtype, row_sharding
        self.eos_id, self.vocab_size = text.eos_id, text.vocab_size
        width, joint = text.width, config.kind == "joint"
        linear = functools.partial(Dense, init=normal(width**-0.5), rngs=rngs, dtype=dtype)
        self.image_proj = linear((image_width,), (width,)) if joint and image_width != width else None
        self.type_embed = nnx.Param(normal(text.token_init_sd)(rngs.params(), (2, width))) if joint else None
        residual = normal((2 * config.layers * width) ** -0.5)
        spec = BlockSpec.from_config(
            config,
            width=width,
            heads=config.heads or text.heads,
            hidden=int(width * config.mlp_ratio),
            causal=False,
            init_qkv=normal(width**-0.5),
            init_out=residual,
            init_fc1=normal((2 * width) ** -0.5),
            init_fc2=residual,
            matmul_precision=matmul_precision,
            context_width=None if joint else image_width,
        )
        self.blocks = stack_blocks(spec, layers=config.layers, rngs=rngs, dtype=dtype)
        self.scan, self.remat = scan, remat
        norm = functools.partial(LayerNorm, width, eps=config.ln_eps, dtype=dtype)
        self.ln_final = None if config.block_norm == "post" else norm()
        self.pooler = linear((width,), (width,)) if config.pool_tanh else None
        self.match_head = linear((width,), (2,))
        reads = config.word_head != "none"
        self.mask_embed = nnx.Param(normal(text.token_init_sd)(rngs.params(), (width,))) if reads else None
        self.word_hidden = linear((width,), (width,)) if reads else None
        self.word_norm = norm() if reads else None
        self.word_out = linear((width,), (text.vocab_size,), bias=False) if config.word_head == "own" else None
        self.word_bias = nnx.Param(jnp.zeros(text.vocab_size)) if reads else None
        wide = 2 * width
        self.answer_hidden = linear((width,), (wide,)) if config.answers else None
        self.answer_norm = LayerNorm(wide, eps=config.ln_eps, dtype=dtype) if config.answers else None
        self.answer_out = linear((wide,), (config.answers,)) if config.answers else None

    def __call__(self, image: jax.Array, text: jax.Array, ids: jax.Array, *, first_only: bool = False) -> jax.Array:
        """The text's tokens after they have met the image's.

        Args:
            image: [B, T, image_width].
            text: [B, L, width].
            ids: i32[B, L]; attention leaves out what follows the end of a text.
            first_only: Compute the first position alone in the last block.

        Returns:
            [B, L, width], or [B, 1, width].
        """
        valid, length = self.valid(ids), text.shape[1]
        x, context = text.astype(self.dtype), image.astype(self.dtype)
        if self.type_embed is not None:
            context = context if self.image_proj is None else self.image_proj(context)
            kinds = self.type_embed[...]
            x, context = (
                y + broadcast_parameter(kind, y.shape, self.dtype) for y, kind in zip((x, context), kinds, strict=True)
            )
            valid = jnp.concatenate([valid, jnp.ones(context.shape[:2], bool)], axis=1)
            x = jnp.concatenate([x, context], axis=1)
        x, _ = run_blocks(
            self.blocks,
            x,
            scan=self.scan,
            remat=self.remat,
            valid=valid,
            position=0 if first_only else None,
            context=context if self.type_embed is None else None,
            row_sharding=self.row_sharding,
        )
        x = x[:, :length]
        return x if self.ln_final is None else self.ln_final(x)

    def valid(self, ids: jax.Array) -> jax.Array:
        """bool[B, L]: the positions up to the first end token; of a text without one, all."""
        ended = (ids == self.eos_id).astype(jnp.int32)
        return jnp.cumsum(ended, axis=1) - ended == 0

    def match(self, image: jax.Array, text: jax.Array, ids: jax.Array) -> jax.Array:
        """Logits f32[B, 2] of "no match" and "match"; for the arguments see ``__call__``."""
        return constrain_rows(self.match_head(self._pooled(image, text, ids)).astype(jnp.float32), self.row_sharding)

    def answer(self, image: jax.Array, text: jax.Array, ids: jax.Array) -> jax.Array:
        """Logits f32[B, answers] of a question's answers, by ViLT's head; for the arguments see ``__call__``."""
        assert self.answer_hidden is not None and self.answer_norm is not None and self.answer_out is not None
        hidden = activate(self.answer_norm(self.answer_hidden(self._pooled(image, text, ids))), "gelu")
        return constrain_rows(self.answer_out(hidden).astype(jnp.float32), self.row_sharding)

    def _pooled(self, image: jax.Array, text: jax.Array, ids: jax.Array) -> jax.Array:
        first = self(image, text, ids, first_only=True)[:, 0]
        return first if self.pooler is None else jnp.tanh(self.pooler(first))

    def word_logits(self, fused: jax.Array, table: jax.Array) -> jax.Array:
        """Logits of each word of the vocabulary, as BERT's: [..., width] -> f32[..., vocab].

        Args:
            fused: What ``__call__`` returns.
            table: f32[vocab, width], the vectors of the text tower's words, with which ``word_head="tied"`` compares.
        """
        assert self.word_hidden is not None and self.word_norm is not None and self.word_bias is not None
        hidden = self.word_norm(activate(self.word_hidden(fused), "gelu"))
        if self.word_out is not None:
            logits = self.word_out(hidden)
        else:
            logits = jnp.einsum("...d,vd->...v", hidden, table.astype(self.dtype), preferred_element_type=jnp.float32)
        return logits.astype(jnp.float32) + self.word_bias[...]
