"""The fusion encoder: the tokens of both towers together, by cross-attention or as one sequence."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from mmjax.core.numerics import broadcast_parameter
from mmjax.core.row_sharding import constrain_rows
from mmjax.models.block_config import MatmulPrecision, Remat
from mmjax.models.block_stack import Block, run_blocks, run_joint_blocks, stack_blocks
from mmjax.models.config import TextConfig
from mmjax.models.joint_config import FusionConfig
from mmjax.models.layers import BlockSpec, Dense, LayerNorm, activate, joins_rows, normal


class PairBlock(nnx.Module):
    """A block of ALBEF for two images: the text goes through one block with the first, and one with the second.

    The two cross-attentions have the same keys and values (Li et al. 2021, arXiv:2107.07651, section 4).
    """

    def __init__(self, first: Block, second: Block):
        self.first, self.second = first, second

    def __call__(self, x: jax.Array, *, images: tuple[jax.Array, jax.Array], **options: Any) -> jax.Array:
        """x [B, L, D] and the images' tokens [B, T, image_width] -> [B, L, D]; ``options`` are those of ``Block``."""
        first, second = self.first.cross_attn, self.second.cross_attn
        assert first is not None and second is not None
        second.key, second.value, second.ln_k = first.key, first.value, first.ln_k
        return self.second(self.first(x, context=images[0], **options), context=images[1], **options)


class FusionEncoder(nnx.Module):
    """Reads image tokens and text tokens, and says whether they match and which words are missing.

    ``kind="cross"`` are the last six layers of ALBEF's BERT (Li et al. 2021, arXiv:2107.07651; TCL has the same): in
    each the text attends to itself, then to the image, then comes an MLP. ``kind="joint"`` is the transformer of ViLT
    (Kim et al. 2021, arXiv:2102.03334) over both sequences, text first, each with a vector of its kind added.

    The first position of the text stands for the pair. Initial values are those of the text tower.

    With ``images=2`` the head of answers reads two images with a text, as in NLVR2. With ``kind="cross"`` each block is
    two, as ALBEF's paper has it (``PairBlock``; its code shares keys and values in the same way). With ``kind="joint"``
    the encoder runs once for each image, which have vectors of their kind apart, and the head reads both results side
    by side: ViLT's code; its paper calls that the pair format. The head is ViLT's for all: a wide layer, a norm and
    GELU, where ALBEF has a layer as wide as the encoder and ReLU.
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
        types = 1 + config.images
        self.type_embed = nnx.Param(normal(text.token_init_sd)(rngs.params(), (types, width))) if joint else None
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
            join_rows=joins_rows(row_sharding),
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
        wide, read = 2 * width, width * (config.images if joint else 1)
        self.answer_hidden = linear((read,), (wide,)) if config.answers else None
        self.answer_norm = LayerNorm(wide, eps=config.ln_eps, dtype=dtype) if config.answers else None
        self.answer_out = linear((wide,), (config.answers,)) if config.answers else None
        doubled = config.images == 2 and not joint
        self.blocks_2 = stack_blocks(spec, layers=config.layers, rngs=rngs, dtype=dtype) if doubled else None
        if self.blocks_2 is not None:
            self.blocks_2.cross_attn.key = self.blocks_2.cross_attn.value = self.blocks_2.cross_attn.ln_k = None

    def __call__(
        self, image: jax.Array, text: jax.Array, ids: jax.Array, *, first_only: bool = False, number: int = 0
    ) -> jax.Array:
        """The text's tokens after they have met the image's.

        Args:
            image: [B, T, image_width].
            text: [B, L, width].
            ids: i32[B, L]; attention leaves out what follows the end of a text.
            first_only: Compute the first position alone in the last block.
            number: Which of the images of one text it is.

        Returns:
            [B, L, width], or [B, 1, width].
        """
        valid, length = self.valid(ids), text.shape[1]
        x, context = text.astype(self.dtype), image.astype(self.dtype)
        if self.type_embed is not None:
            context = context if self.image_proj is None else self.image_proj(context)
            kinds = self.type_embed[...]
            x = x + broadcast_parameter(kinds[0], x.shape, self.dtype)
            context = context + broadcast_parameter(kinds[1 + number], context.shape, self.dtype)
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

    def match_logits(self, fused: jax.Array) -> jax.Array:
        """What ``match`` makes of the tokens [B, 1 or L, width] after the last block."""
        return self.match_head(self._pool(fused if self.ln_final is None else self.ln_final(fused))).astype(jnp.float32)

    def answer(self, image: jax.Array, text: jax.Array, ids: jax.Array) -> jax.Array:
        """Logits f32[B, answers] of a question's answers, by ViLT's head.

        Args:
            image: [B, T, image_width], or with ``images=2`` [B, 2, T, image_width].
            text, ids: As in ``__call__``.
        """
        assert self.answer_hidden is not None and self.answer_norm is not None and self.answer_out is not None
        if self.config.images == 1:
            read = self._pooled(image, text, ids)
        elif self.blocks_2 is None:
            read = jnp.concatenate([self._pooled(image[:, k], text, ids, number=k) for k in range(2)], axis=-1)
        else:
            pair = PairBlock(self.blocks, self.blocks_2)
            read = self._pool(self._run_pair(pair, image.astype(self.dtype), text.astype(self.dtype), ids))
        hidden = activate(self.answer_norm(self.answer_hidden(read)), "gelu")
        return constrain_rows(self.answer_out(hidden).astype(jnp.float32), self.row_sharding)

    def _run_pair(self, blocks: PairBlock, image: jax.Array, text: jax.Array, ids: jax.Array) -> jax.Array:
        x = run_joint_blocks(
            blocks,
            text,
            scan=self.scan,
            remat=self.remat,
            row_sharding=self.row_sharding,
            images=(image[:, 0], image[:, 1]),
            valid=self.valid(ids),
        )
        return x if self.ln_final is None else self.ln_final(x)

    def _pooled(self, image: jax.Array, text: jax.Array, ids: jax.Array, *, number: int = 0) -> jax.Array:
        return self._pool(self(image, text, ids, first_only=True, number=number))

    def _pool(self, fused: jax.Array) -> jax.Array:
        return fused[:, 0] if self.pooler is None else jnp.tanh(self.pooler(fused[:, 0]))

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


def embed_image_tokens(model: Any, images: Mapping[str, jax.Array]) -> jax.Array:
    """The image tower's tokens as the fusion encoder reads them: [N, T, D], or [N, 2, T, D] of two images."""
    sequence = model.visual.run(model.visual.embed(images), with_sequence=True).sequence
    if model.fusion.config.images == 2:  # the tower has all first images before all second ones
        sequence = sequence.reshape(2, -1, *sequence.shape[1:]).swapaxes(0, 1)
    return sequence


def embed_text_tokens(model: Any, ids: jax.Array) -> jax.Array:
    """The text tower's tokens [N, L, D] of ids i32[N, L]."""
    return model.text.run(model.text.embed(ids), ids, with_sequence=True).sequence


def match_pairs(model: Any, image: jax.Array, ids: jax.Array) -> jax.Array:
    """f32[N]: the logit of a match of each image, by its tokens [N, T, D], and each text of ids i32[N, L]."""
    return model.fusion.match(image, embed_text_tokens(model, ids), ids)[:, 1]


def answer_pairs(model: Any, image: jax.Array, ids: jax.Array) -> jax.Array:
    """f32[N, answers]: the logits of the answers to each text about its image, or its two images."""
    return model.fusion.answer(image, embed_text_tokens(model, ids), ids)
