"""The text decoder: a causal transformer over words that sees the image's tokens, at once or word by word."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from mmjax.core.row_sharding import constrain_rows
from mmjax.models.attention.cached import KeyValues, attend_next, run_next
from mmjax.models.block_config import MatmulPrecision, Remat
from mmjax.models.block_stack import Block, run_joint_blocks, stack_blocks
from mmjax.models.config import ClipConfig
from mmjax.models.joint_config import DecoderConfig
from mmjax.models.layers import Attention, BlockSpec, Dense, LayerNorm, joins_rows, normal
from mmjax.models.text import TextTower, TokenEmbed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderCache:
    """What is kept of the words so far, for ``Decoder.next``; all arrays are [layers, B, …]."""

    own: KeyValues  # of the decoder's words, after image tokens where these are a prefix
    image: KeyValues | None = None  # what cross-attention attends to
    tower: KeyValues | None = None  # of the text tower
    prefix: int = dataclasses.field(default=0, metadata={"static": True})  # how many image tokens are in front


class Decoder(nnx.Module):
    """Logits of each word from the words before it and from an image.

    The words enter as the text tower's tokens (``inputs="tower"``) or, after a start vector, as embeddings of their own
    (``ids``). They see the image by cross-attention (``attend="cross"``), or because its tokens are in front of them in
    the same sequence (``prefix``), where they see each other but no word::

        x += attn(ln(x));  [x += mlp(ln(x))];  x += cross_attn(ln(x), image);  x += mlp(ln(x))

    * CoCa (Yu et al. 2022, arXiv:2205.01917): words of the text tower, image tokens of attentional pooling. The paper
      has one MLP a layer (``cross_mlp=False``); open_clip has one after each attention, and a norm of the image tokens
      in each layer (``True``). open_clip gives the text tower's tokens without its last norm where a class token is
      pooled; so it is here.
    * CapPa (Tschannen et al. 2023, arXiv:2306.07915): with ``mask_token`` some texts (``parallel``) are predicted from
      mask tokens alone, all words at once and without the causal mask. big_vision leaves out all biases, starts from a
      zero output matrix and N(0, 1) embeddings, and has the padding token in place of the start vector; here norms and
      output maps have biases, and initial values are CLIP's.
    * Prefix language model: as GenLIP in open_clip, where the first word is predicted from the last patch and there is
      no image tower in front; here it is predicted from the start vector, after a tower of any depth.
    """

    def __init__(
        self,
        model: ClipConfig,
        *,
        scan: bool,
        remat: Remat,
        matmul_precision: MatmulPrecision,
        rngs: nnx.Rngs,
        dtype: Any,
        row_sharding: NamedSharding | None = None,
    ):
        vocab_size = model.text_cfg.vocab_size
        assert model.decoder is not None and vocab_size is not None
        self.config, self.dtype, self.row_sharding = model.decoder, dtype, row_sharding
        self.scan, self.remat = scan, remat
        config, text = model.decoder, model.text_cfg
        width, ids = config.width, config.inputs == "ids"
        linear = functools.partial(Dense, rngs=rngs, dtype=dtype)
        image_width = model.image_token_width
        project_image, project_text = image_width != width, not ids and text.width != width
        self.image_proj = linear((image_width,), (width,), init=normal(image_width**-0.5)) if project_image else None
        self.text_proj = linear((text.width,), (width,), init=normal(text.width**-0.5)) if project_text else None
        vector = lambda *shape: nnx.Param(normal(text.position_init_sd)(rngs.params(), (*shape, width)))  # noqa: E731
        self.token_embed = TokenEmbed(vocab_size, width, sd=text.token_init_sd, rngs=rngs) if ids else None
        self.pos_embed = vector(text.context_length) if ids else None
        self.start_embed = vector() if ids else None
        self.mask_embed = vector() if config.mask_token else None
        spec = block_spec(config, matmul_precision=matmul_precision, join_rows=joins_rows(row_sharding))
        make = functools.partial(DecoderBlock, cross=config.attend == "cross", cross_mlp=config.cross_mlp)
        self.blocks = stack_blocks(spec, layers=config.layers, rngs=rngs, dtype=dtype, make=make)
        self.ln_final = LayerNorm(width, eps=config.ln_eps, dtype=dtype)
        self.head = linear((width,), (vocab_size,), init=normal(width**-0.5), bias=False)

    @property
    def first(self) -> int:
        """The first position whose word is predicted: the text tower needs one word before it."""
        return 0 if self.config.inputs == "ids" else 1

    def __call__(
        self, image: jax.Array, text: jax.Array | None, ids: jax.Array, *, parallel: jax.Array | None = None
    ) -> jax.Array:
        """What ``logits`` are computed of.

        Args:
            image: [B, T, D_image], the image tower's sequence.
            text: [B, L, D_text], the text tower's, if these are the inputs.
            ids: i32[B, L].
            parallel: bool[B]: the texts whose words are predicted from mask tokens; None: none.

        Returns:
            [B, L - first, width]: row i is for the word at position ``first + i``.
        """
        context: jax.Array | None = self._image(image)
        if self.config.inputs == "tower":
            assert text is not None
            x = text[:, :-1] if self.text_proj is None else self.text_proj(text[:, :-1])
        else:
            x = self._embed(ids, parallel)
        length, prefix = x.shape[1], 0
        if self.config.attend == "prefix":
            assert context is not None
            prefix = context.shape[1]
            x, context = jnp.concatenate([context, x], axis=1), None
        place = jnp.arange(prefix + length)
        mask = ((place[None] <= place[:, None]) | (place < prefix))[None, None]
        if parallel is not None:
            mask = mask | parallel[:, None, None, None]
        x = run_joint_blocks(
            self.blocks,
            x,
            scan=self.scan,
            remat=self.remat,
            row_sharding=self.row_sharding,
            mask=mask,
            image=context,
        )
        return constrain_rows(self.ln_final(x[:, prefix:]), self.row_sharding)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[…, width] -> f32[…, vocab_size]."""
        return self.head(hidden).astype(jnp.float32)

    def start(self, image: jax.Array, tower: TextTower, *, length: int) -> DecoderCache:
        """The cache before the first word, for texts of up to ``length`` tokens about images [B, T, D_image]."""
        image, layers = self._image(image), self.config.layers
        prefix = image.shape[1] if self.config.attend == "prefix" else 0
        empty = functools.partial(KeyValues.empty, batch=len(image), dtype=self.dtype)
        own = empty(self.blocks.own.attn, layers=layers, length=prefix + length)
        if prefix:

            def fill(block: DecoderBlock, x: jax.Array, cache: KeyValues) -> tuple[jax.Array, KeyValues]:
                return block(x, mask=None, image=None), cache.put(0, *block.own.attn.keys_values(block.own.ln_1(x)))

            return DecoderCache(own=run_next(self.blocks, image, own, fill)[1], prefix=prefix)

        def keep(block: DecoderBlock, x: jax.Array, cache: None) -> tuple[jax.Array, KeyValues]:
            return x, KeyValues(*block.image_attention.keys_values(block.seen(x)))

        _, seen = run_next(self.blocks, image, None, keep)
        in_tower = None
        if self.config.inputs == "tower":
            assert tower.blocks is not None
            in_tower = empty(tower.blocks.attn, layers=tower.config.layers, length=length)
        return DecoderCache(own=own, image=seen, tower=in_tower)

    def next(
        self, cache: DecoderCache, previous: jax.Array, position: jax.Array, tower: TextTower
    ) -> tuple[jax.Array, DecoderCache]:
        """Logits f32[B, vocab_size] of the word at ``position`` (from ``first`` on), and the cache for the one after.

        Args:
            cache: After the word at ``position - 2``.
            previous: i32[B], the word at ``position - 1``; at position 0 of no meaning.
            position: i32[].
            tower: The text tower.
        """
        in_tower, place = cache.tower, position - self.first  # of what enters the decoder
        if self.config.inputs == "tower":
            assert in_tower is not None
            x, in_tower = tower.next(in_tower, previous, place)
            x = x if self.text_proj is None else self.text_proj(x)
        else:
            assert self.token_embed is not None and self.pos_embed is not None and self.start_embed is not None
            x = jnp.where(place == 0, self.start_embed[...], self.token_embed(previous[:, None]))
            x = (x + jax.lax.dynamic_slice_in_dim(self.pos_embed[...], place, 1)).astype(self.dtype)

        def step(block: DecoderBlock, x: jax.Array, own: Any) -> tuple[jax.Array, KeyValues]:
            kept, seen = own
            attended, kept = attend_next(block.own.attn, block.own.ln_1(x), kept, cache.prefix + place)
            return block.complete(x, attended, seen), kept

        x, own = run_next(self.blocks, x, (cache.own, cache.image), step)
        cache = dataclasses.replace(cache, own=own, tower=in_tower)
        return self.logits(self.ln_final(x))[:, 0], cache

    def _image(self, image: jax.Array) -> jax.Array:
        return image if self.image_proj is None else self.image_proj(image)

    def _embed(self, ids: jax.Array, parallel: jax.Array | None) -> jax.Array:
        assert self.token_embed is not None and self.pos_embed is not None and self.start_embed is not None
        start = jnp.broadcast_to(self.start_embed[...], (len(ids), 1, self.config.width))
        x = jnp.concatenate([start, self.token_embed(ids[:, :-1])], axis=1)
        if parallel is not None:
            assert self.mask_embed is not None
            x = jnp.where(parallel[:, None, None], self.mask_embed[...], x)
        return (x + self.pos_embed[...][: ids.shape[1]]).astype(self.dtype)


class DecoderBlock(nnx.Module):
    """One layer: a block, and with ``cross`` attention to an image within it or (``cross_mlp``) in one more block."""

    def __init__(self, spec: BlockSpec, *, cross: bool, cross_mlp: bool, rngs: nnx.Rngs, dtype: Any):
        joined = dataclasses.replace(spec, context_width=spec.width if cross and not cross_mlp else None)
        self.own = Block(joined, rngs=rngs, dtype=dtype)
        self.cross = CrossBlock(spec, rngs=rngs, dtype=dtype) if cross and cross_mlp else None

    def __call__(self, x: jax.Array, *, mask: jax.Array | None, image: jax.Array | None) -> jax.Array:
        """x [B,L,width] that sees what ``mask`` bool[B or 1,1,L,L] lets it and an image [B,T,width] -> [B,L,width]."""
        normed = self.own.ln_1(x)
        attended = self.own.attn(normed, normed, mask=mask)
        return self.complete(x, attended, None if image is None else self.image_attention.keys_values(self.seen(image)))

    @property
    def image_attention(self) -> Attention:
        """What attends to the image."""
        attn = self.own.cross_attn if self.cross is None else self.cross.attn
        assert attn is not None
        return attn

    def seen(self, image: jax.Array) -> jax.Array:
        """What that attention sees of image tokens [B,T,width]."""
        return image if self.cross is None else self.cross.ln_context(image)

    def complete(self, x: jax.Array, attended: jax.Array, image: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        """The rest of the layer, of its input, of what self-attention makes of it, and of the image's keys and values.

        These are None where there is no image beside the sequence.
        """
        if image is None:
            return self.own.complete(x, attended)
        attend = lambda queries: self.image_attention.attend_to(queries, *image)  # noqa: E731
        if self.cross is None:
            return self.own.complete(x, attended, attend_context=attend)
        x = self.own.complete(x, attended)
        return self.cross.complete(x, attend(self.cross.ln_1(x)))


class CrossBlock(Block):
    """A block whose attention is to a context, after a norm of that: its ``attn`` attends to what ``seen`` returns."""

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs, dtype: Any):
        super().__init__(spec, rngs=rngs, dtype=dtype)
        self.ln_context = LayerNorm(spec.width, eps=spec.ln_eps, dtype=dtype)


def block_spec(
    config: DecoderConfig, *, matmul_precision: MatmulPrecision = "full", join_rows: bool = False
) -> BlockSpec:
    """The decoder's block, with CLIP's initial values as open_clip has them in its decoder."""
    residual = normal((2 * config.layers * config.width) ** -0.5)
    return BlockSpec.from_config(
        config,
        width=config.width,
        heads=config.heads,
        hidden=int(config.width * config.mlp_ratio),
        causal=True,
        init_qkv=normal(config.width**-0.5),
        init_out=residual,
        init_fc1=normal((2 * config.width) ** -0.5),
        init_fc2=residual,
        matmul_precision=matmul_precision,
        join_rows=join_rows,
    )
