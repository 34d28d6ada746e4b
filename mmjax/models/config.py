"""The schema of a model: every size and option of both towers. Imports no jax, so that data code can read it.

Keys that open_clip's model files also have keep open_clip's names and meanings (see ``open_clip_json``).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal, Protocol

from mmjax.core.config import Between, ConfigError, Ge, Le
from mmjax.models.block_config import (
    AttentionKernel,
    BlockConfig,
    Layers,
    MatmulPrecision,
    PositiveFloat,
    PositiveInt,
    Remat,
    Scan,
    Size,
    require,
)
from mmjax.models.joint_config import DecoderConfig, FusionConfig, check_joint
from mmjax.models.vision.frames_config import RecognizerConfig, check_frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(BlockConfig):
    """The image tower: a vision transformer, or CLIP's ResNet as the stem of one without blocks.

    With the stem ``frames`` it takes sequences of up to ``max_frames`` frames, each ``modality_channels`` features.

    Rotary positions (``rope``) turn each pair of numbers of a patch's queries and keys by its coordinates; the first
    half of a head has those of ``rope``'s first word. They count from ``rope_offset``, and a grid of another size is
    stretched onto ``rope_grid`` a side.

    ``pool_type`` takes the class token, the mean of the patches, a learned query's attention to all tokens (``map``),
    or the attention of the patches' mean, which is then the class token, to itself and them (``attn``: ResNets).

    With ``attentional_pool`` (CoCa) ``attn_pooler_queries`` learned queries attend to all tokens, and the results are
    the image tokens that a decoder sees. ``shared``, as open_clip has it: the first of them is pooled (``tok``; the
    decoder sees the others) or their mean (``avg``). As in the paper one more query is pooled, which attends to the
    results (``cascade``) or to all tokens (``parallel``).
    """

    image_size: Size = 224
    patch_size: Size = 16
    width: Size = 768
    layers: Annotated[int, Between(0, 1000)] = 12
    head_width: Size = 64
    stem: Literal["patch", "conv", "patch_merge", "resnet", "frames"] = "patch"
    max_frames: Size = 64  # of a sequence, with the stem 'frames'
    stem_widths: tuple[Size, ...] = ()  # channels after each convolution or merge; the last is the width
    stem_layers: tuple[Layers, ...] = ()  # of a ResNet: the bottlenecks of each stage
    stem_norm: Literal["layer", "batch"] = "layer"  # batch: between convolutions, with fixed statistics
    patch_bias: bool = False
    pos_embed_type: Literal["learnable", "sin_cos_2d"] = "learnable"
    rope: Literal["none", "row_column", "column_row"] = "none"
    rope_grid: Size | None = None
    rope_offset: float = 0.0
    class_token: bool = True
    class_position: bool = True  # whether the class token has a learned position too
    registers: Annotated[int, Between(0, 2**16)] = 0  # learned tokens beside the class token, which no pooling reads
    no_ln_pre: bool = False
    pool_type: Literal["tok", "avg", "map", "attn"] = "tok"
    map_heads: Size | None = None  # heads of attention pooling; None: those of the blocks
    map_mlp_ratio: PositiveFloat | None = None  # likewise
    attentional_pool: Literal["none", "shared", "cascade", "parallel"] = "none"
    attn_pooler_queries: Annotated[int, Between(2, 2**16)] = 256
    attn_pooler_heads: Size = 8
    final_ln_after_pool: bool = False
    proj_type: Literal["linear", "none"] = "linear"
    proj_bias: bool = False
    modalities: tuple[str, ...] = ("image",)
    modality_channels: tuple[Size, ...] = (3,)
    fusion: Literal["views", "channels", "tokens", "gated"] = "views"
    modality_embed: bool = True  # several modalities have a learned vector each; False: they are of one kind
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    image_resize: Literal["shortest", "squash", "longest"] = "shortest"  # how evaluation resizes images

    def __post_init__(self) -> None:
        section = "model.vision_cfg"
        require(
            self.width % self.head_width == 0,
            f"{section}.head_width={self.head_width}: must divide {section}.width={self.width}",
        )
        require(
            len(set(self.modalities)) == len(self.modalities),
            f"{section}.modalities={self.modalities}: names one twice; list each once",
        )
        require(
            self.patch_size <= self.image_size,
            f"{section}.patch_size={self.patch_size}: larger than {section}.image_size={self.image_size}",
        )
        require(
            self.pool_type != "tok" or self.class_token,
            f"{section}.pool_type='tok': needs {section}.class_token=True; otherwise pool 'avg' or 'map'",
        )
        require(
            not (self.pool_type == "map" and self.final_ln_after_pool),
            f"{section}.final_ln_after_pool=True: attention pooling has its norm before it; set it to False",
        )
        pooler = self.attentional_pool != "none"
        require(
            not pooler or (self.pool_type in ("tok", "avg") and not self.final_ln_after_pool),
            f"{section}.attentional_pool={self.attentional_pool!r}: goes with pool_type 'tok' or 'avg' and with "
            f"final_ln_after_pool=False, not {self.pool_type!r}",
        )
        require(
            self.rope == "none" or (self.head_width % 4 == 0 and self.fusion != "tokens"),
            f"{section}.rope={self.rope!r}: needs a {section}.head_width={self.head_width} that 4 divides, and "
            f"{section}.fusion={self.fusion!r} other than 'tokens'",
        )
        require(
            self.pos_embed_type != "sin_cos_2d" or self.width % 4 == 0,
            f"{section}.width={self.width}: sin_cos_2d positions need a multiple of 4",
        )
        require(
            len(self.modalities) == len(self.modality_channels) > 0,
            f"{section}.modality_channels={self.modality_channels}: give one number for each of {section}.modalities="
            f"{self.modalities}",
        )
        require(
            self.fusion == "channels" or self.stem == "frames" or set(self.modality_channels) <= {1, 3},
            f"{section}.modality_channels={self.modality_channels}: a shared stem takes 1 or 3 channels; "
            f"use {section}.fusion='channels' for others",
        )
        check_frames(self)
        self._check_stem(section)

    def _check_stem(self, section: str) -> None:
        resnet = self.stem == "resnet"
        require(
            (self.pool_type == "attn") == (len(self.stem_layers) == 4) == resnet and (self.layers == 0 or not resnet),
            f"{section}.stem={self.stem!r}: 'resnet', and it alone, goes with {section}.layers=0, four numbers in "
            f"{section}.stem_layers and {section}.pool_type='attn'",
        )
        if resnet:
            require(
                self.class_token and self.no_ln_pre and self.registers == 0 and self.patch_size == 32,
                f"{section}.stem='resnet': needs class_token=True, no_ln_pre=True, registers=0, patch_size=32",
            )
            require(
                self.stem_widths == (self.width // 32,) and self.width % 64 == 0,
                f"{section}.stem_widths={self.stem_widths}: must be one, an even 32nd of {section}.width={self.width}",
            )
            return
        if self.stem in ("frames", "patch"):
            unused = f"{section}.stem_widths={self.stem_widths}: unused by stem {self.stem!r}; leave empty"
            require(self.stem_widths == (), unused)
            return
        require(
            len(self.stem_widths) > 0 and self.stem_widths[-1] == self.width,
            f"{section}.stem_widths={self.stem_widths}: the last must be {section}.width={self.width}",
        )
        halvings = 2 ** (len(self.stem_widths) - (self.stem == "patch_merge"))
        require(
            self.patch_size == halvings if self.stem == "conv" else self.patch_size % halvings == 0,
            f"{section}.patch_size={self.patch_size}: a {self.stem!r} stem of {len(self.stem_widths)} steps needs "
            f"{'exactly' if self.stem == 'conv' else 'a multiple of'} {halvings}",
        )
        require(
            self.image_size % self.patch_size == 0,
            f"{section}.image_size={self.image_size}: must be a multiple of {section}.patch_size={self.patch_size}",
        )

    @property
    def heads(self) -> int:
        """Attention heads of a block."""
        return self.width // self.head_width

    @property
    def max_tokens(self) -> int:
        """The most tokens that enter a block."""
        images = len(self.modalities) if self.fusion == "tokens" else 1
        return images * self.num_patches + self.class_token + self.registers

    @property
    def num_patches(self) -> int:
        """Tokens of one picture, or the most frames of a sequence."""
        return self.max_frames if self.stem == "frames" else self.grid**2

    @property
    def grid(self) -> int:
        """Patches along a side; as with torch's convolution, pixels beyond the last whole patch are not seen."""
        return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(BlockConfig):
    """The text tower: a transformer, causal unless ``no_causal_mask``.

    ``pool_type`` takes the token of the highest id (``argmax``: CLIP's end of text), the first ``eos_id`` (``eos``),
    the first or last position, or the mean over all tokens but ``pad_id``; attention then ignores padding as well.
    Fields that are None come from the tokenizer (``with_tokenizer``).

    BERT and its relatives have ``block_norm="post"`` (with it there is no norm after the blocks), ``embed_norm``,
    ``mask_padding``, and the rest as their weights need.
    """

    context_length: Size = 77
    vocab_size: Annotated[PositiveInt, Le(2**31 - 1)] | None = 49408
    pad_id: int | None = None
    eos_id: int | None = None
    width: Size = 512
    heads: Size = 8
    layers: Annotated[int, Between(0, 1000)] = 12
    no_causal_mask: bool = False
    mask_padding: bool = False  # attention ignores padding, whatever the pooling
    num_positions: Size | None = None  # None: context_length; pretrained tables may have more
    positions_from_pad: bool = False  # count from pad_id + 1 and leave out padding, as RoBERTa does
    token_types: Annotated[int, Between(0, 2**16)] = 0  # vectors for kinds of sentences; the first is added to all
    embed_norm: bool = False  # layer norm of the embedded tokens
    pool_type: Literal["argmax", "eos", "first", "last", "mean"] = "argmax"
    pool_tanh: bool = False  # BERT's pooler: a linear map and tanh of what is pooled
    embed_cls: bool = False  # pool a learned token after the last one, as CoCa does; the last norm is after pooling
    correct_cls_mask: bool = False  # False: that token's mask as in open_clip's released models, one position off
    final_ln_after_pool: bool = False
    proj_type: Literal["linear", "mlp", "none"] = "linear"  # mlp: over the mean of both widths
    proj_bias: bool = False
    token_init_sd: Annotated[float, Ge(0)] = 0.02
    position_init_sd: Annotated[float, Ge(0)] = 0.01
    hf_tokenizer_name: str | None = None  # the tokenizer that pretrained weights of this model expect
    tokenizer_clean: str | None = None  # how that tokenizer cleans text first
    tokenizer_strip_sep: bool = False  # it then writes 0 in place of its separator

    @property
    def masks_padding(self) -> bool:
        """Whether attention leaves out padding."""
        return self.mask_padding or self.pool_type == "mean" or self.embed_cls

    def __post_init__(self) -> None:
        section = "model.text_cfg"
        require(
            not (self.block_norm == "post" and self.final_ln_after_pool),
            f"{section}.final_ln_after_pool=True: there is no last norm with {section}.block_norm='post'; set it False",
        )
        require(
            not self.embed_cls or (self.final_ln_after_pool and not self.positions_from_pad),
            f"{section}.embed_cls=True: needs final_ln_after_pool=True and positions_from_pad=False",
        )
        first = 0 if not self.positions_from_pad or self.pad_id is None else self.pad_id + 1
        require(
            self.num_positions is None or self.num_positions >= self.context_length + first,
            f"{section}.num_positions={self.num_positions}: fewer than the {self.context_length + first} of "
            f"{section}.context_length={self.context_length}",
        )
        require(
            self.width * self.mlp_ratio >= 1,
            f"model.text_cfg.mlp_ratio={self.mlp_ratio}: leaves no hidden unit of model.text_cfg.width={self.width}; "
            "raise it",
        )
        require(
            self.width % self.heads == 0,
            f"model.text_cfg.heads={self.heads}: must divide model.text_cfg.width={self.width}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Two towers and a learned temperature."""

    embed_dim: Size = 512
    init_logit_scale: float = math.log(1 / 0.07)  # its logarithm
    init_logit_bias: float | None = None  # None: no bias, as in CLIP; SigLIP starts from -10
    max_logit_scale: PositiveFloat = 100.0  # training clips the scale to it after each update
    scan: Scan = "auto"
    attention: AttentionKernel = "auto"  # of towers that do not name their own
    remat: Remat = "dots"
    matmul_precision: MatmulPrecision = "full"
    vision_cfg: VisionConfig = dataclasses.field(default_factory=VisionConfig)
    text_cfg: TextConfig = dataclasses.field(default_factory=TextConfig)
    fusion: FusionConfig | None = None  # an encoder of both towers' tokens together
    decoder: DecoderConfig | None = None  # a language model over image tokens
    recognizer: RecognizerConfig | None = None  # labels of a sequence's frames

    def __post_init__(self) -> None:
        check_joint(self)
        for section, tower in (("model.vision_cfg", self.vision_cfg), ("model.text_cfg", self.text_cfg)):
            require(
                tower.proj_type != "none" or tower.width == self.embed_dim,
                f"{section}.proj_type='none': needs {section}.width={tower.width} equal to "
                f"model.embed_dim={self.embed_dim}",
            )

    @property
    def image_token_width(self) -> int:
        """The width of the image tower's sequence."""
        return self.vision_cfg.width if self.vision_cfg.attentional_pool == "none" else self.embed_dim


class TokenizerInfo(Protocol):
    """What a model must know about its tokenizer."""

    vocab_size: int
    context_length: int
    bos_id: int | None
    pad_id: int
    eos_id: int


def with_tokenizer(config: ClipConfig, tokenizer: TokenizerInfo) -> ClipConfig:
    """``config`` with the fields of ``text_cfg`` that are None taken from ``tokenizer``; raises if the two disagree."""
    text = config.text_cfg
    if text.vocab_size is not None and text.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"model.text_cfg.vocab_size={text.vocab_size}: the tokenizer has {tokenizer.vocab_size} tokens; "
            "set it to None to take the tokenizer's size, or use another tokenizer"
        )
    if tokenizer.context_length > text.context_length:
        raise ConfigError(
            f"model.text_cfg.context_length={text.context_length}: the tokenizer writes {tokenizer.context_length} "
            "tokens; make the two equal"
        )
    if config.decoder is not None and config.decoder.inputs == "tower" and tokenizer.bos_id is None:
        raise ConfigError(
            "model.decoder.inputs='tower': the tokenizer writes no start token, so the first word would have nothing "
            "before it; set inputs='ids'"
        )
    special_ids: dict[str, Any] = {}
    for name in ("pad_id", "eos_id"):
        configured, actual = getattr(text, name), getattr(tokenizer, name)
        if configured is not None and configured != actual:
            raise ConfigError(
                f"model.text_cfg.{name}={configured}: the tokenizer's is {actual}; set it to None to take that"
            )
        special_ids[name] = actual
    size = tokenizer.vocab_size if text.vocab_size is None else text.vocab_size
    return dataclasses.replace(config, text_cfg=dataclasses.replace(text, vocab_size=size, **special_ids))


def take_resolved(config: ClipConfig, resolved: ClipConfig) -> ClipConfig:
    """``config`` with the fields that training takes from its data as they are in ``resolved``."""
    text, other = config.text_cfg, resolved.text_cfg
    text = dataclasses.replace(
        text,
        vocab_size=other.vocab_size if text.vocab_size is None else text.vocab_size,
        pad_id=other.pad_id if text.pad_id is None else text.pad_id,
        eos_id=other.eos_id if text.eos_id is None else text.eos_id,
    )
    vision = dataclasses.replace(
        config.vision_cfg,
        modalities=resolved.vision_cfg.modalities,
        modality_channels=resolved.vision_cfg.modality_channels,
    )
    return dataclasses.replace(config, text_cfg=text, vision_cfg=vision)
