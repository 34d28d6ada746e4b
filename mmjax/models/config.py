"""The schema of a model: every size and option of both towers. Imports no jax, so that data code can read it.

Keys that open_clip's model files also have keep open_clip's names and meanings (see ``open_clip_json``).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, Protocol

from mmjax.core.config import ConfigError

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
"""Exact (erf) GELU, its tanh approximation (flax's and SigLIP's), or ``x·sigmoid(1.702 x)`` (OpenAI's CLIP)."""

Remat = Literal["none", "dots", "offload", "full"]
"""What a block keeps for its backward pass: everything, its matrix products (on the device, or ``offload``: in the
host's memory), or its input alone.
"""

MatmulPrecision = Literal["full", "int8", "fp8"]
"""The numbers that the blocks' linear maps multiply; see ``low_precision``."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The image tower: a pre-norm vision transformer."""

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    layers: int = 12
    head_width: int = 64
    mlp_ratio: float = 4.0
    activation: Activation = "gelu"
    ln_eps: float = 1e-5
    qk_norm: bool = False  # layer norm of each head's queries and keys
    stem: Literal["patch", "conv", "patch_merge"] = "patch"
    stem_widths: tuple[int, ...] = ()  # channels after each convolution or merge; the last is the width
    patch_bias: bool = False
    pos_embed_type: Literal["learnable", "sin_cos_2d"] = "learnable"
    class_token: bool = True
    registers: int = 0
    no_ln_pre: bool = False
    pool_type: Literal["tok", "avg", "map"] = "tok"
    final_ln_after_pool: bool = False
    proj_type: Literal["linear", "none"] = "linear"
    proj_bias: bool = False
    modalities: tuple[str, ...] = ("image",)
    modality_channels: tuple[int, ...] = (3,)
    fusion: Literal["views", "channels", "tokens"] = "views"
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    image_resize: Literal["shortest", "squash", "longest"] = "shortest"  # how evaluation brings pictures to image_size

    def __post_init__(self) -> None:
        at = "vision_cfg"
        _require(
            self.width % self.head_width == 0,
            f"{at}.head_width={self.head_width}: must divide {at}.width={self.width}",
        )
        for name, least in (("layers", 1), ("patch_size", 1), ("registers", 0)):
            value = getattr(self, name)
            _require(value >= least, f"{at}.{name}={value}: must be at least {least}")
        _require(
            len(set(self.modalities)) == len(self.modalities),
            f"{at}.modalities={self.modalities}: names one twice; list each once",
        )
        _require(
            self.patch_size <= self.image_size,
            f"{at}.patch_size={self.patch_size}: larger than {at}.image_size={self.image_size}",
        )
        _require(
            self.pool_type != "tok" or self.class_token,
            f"{at}.pool_type='tok': needs {at}.class_token=True; otherwise pool 'avg' or 'map'",
        )
        _require(
            not (self.pool_type == "map" and self.final_ln_after_pool),
            f"{at}.final_ln_after_pool=True: attention pooling has its norm before it; set it to False",
        )
        _require(
            self.pos_embed_type != "sin_cos_2d" or self.width % 4 == 0,
            f"{at}.width={self.width}: sin_cos_2d positions need a multiple of 4",
        )
        _require(
            len(self.modalities) == len(self.modality_channels) > 0,
            f"{at}.modality_channels={self.modality_channels}: give one number for each of {at}.modalities="
            f"{self.modalities}",
        )
        _require(
            self.fusion == "channels" or set(self.modality_channels) <= {1, 3},
            f"{at}.modality_channels={self.modality_channels}: a shared stem takes 1 or 3 channels; "
            f"use {at}.fusion='channels' for others",
        )
        self._check_stem(at)

    def _check_stem(self, at: str) -> None:
        if self.stem == "patch":
            _require(
                self.stem_widths == (), f"{at}.stem_widths={self.stem_widths}: unused by stem 'patch'; leave empty"
            )
            return
        _require(
            len(self.stem_widths) > 0 and self.stem_widths[-1] == self.width,
            f"{at}.stem_widths={self.stem_widths}: the last must be {at}.width={self.width}",
        )
        halvings = 2 ** (len(self.stem_widths) - (self.stem == "patch_merge"))
        _require(
            self.patch_size == halvings if self.stem == "conv" else self.patch_size % halvings == 0,
            f"{at}.patch_size={self.patch_size}: a {self.stem!r} stem of {len(self.stem_widths)} steps needs "
            f"{'exactly' if self.stem == 'conv' else 'a multiple of'} {halvings}",
        )
        _require(
            self.image_size % self.patch_size == 0,
            f"{at}.image_size={self.image_size}: must be a multiple of {at}.patch_size={self.patch_size}",
        )

    @property
    def heads(self) -> int:
        """Attention heads of a block."""
        return self.width // self.head_width

    @property
    def grid(self) -> int:
        """Patches along a side; as with torch's convolution, pixels beyond the last whole patch are not seen."""
        return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text tower: a pre-norm transformer, causal unless ``no_causal_mask``.

    Pooling takes the token of the highest id (``argmax``: CLIP's end of text), the first ``eos_id`` (``eos``), the
    first or last position, or the mean over all tokens but ``pad_id``, which then no token attends to either.
    What is None comes from the tokenizer (``with_tokenizer``).
    """

    context_length: int = 77
    vocab_size: int | None = 49408
    pad_id: int | None = None
    eos_id: int | None = None
    width: int = 512
    heads: int = 8
    layers: int = 12
    mlp_ratio: float = 4.0
    activation: Activation = "gelu"
    ln_eps: float = 1e-5
    qk_norm: bool = False
    no_causal_mask: bool = False
    pool_type: Literal["argmax", "eos", "first", "last", "mean"] = "argmax"
    final_ln_after_pool: bool = False
    proj_type: Literal["linear", "none"] = "linear"
    proj_bias: bool = False
    token_init_sd: float = 0.02
    position_init_sd: float = 0.01
    hf_tokenizer_name: str | None = None  # the tokenizer that pretrained weights of this model expect
    tokenizer_clean: str | None = None  # and how it cleans text first

    def __post_init__(self) -> None:
        _require(self.width % self.heads == 0, f"text_cfg.heads={self.heads}: must divide text_cfg.width={self.width}")
        _require(self.layers >= 1, f"text_cfg.layers={self.layers}: must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Two towers and a learned temperature."""

    embed_dim: int = 512
    init_logit_scale: float = math.log(1 / 0.07)  # of the logarithm
    init_logit_bias: float | None = None  # None: no bias, as in CLIP; SigLIP starts from -10
    max_logit_scale: float = 100.0  # training clips the scale to it after each update
    scan: bool = True  # loop over the blocks in the program instead of writing each one out: compiles faster
    remat: Remat = "dots"
    matmul_precision: MatmulPrecision = "full"
    vision_cfg: VisionConfig = dataclasses.field(default_factory=VisionConfig)
    text_cfg: TextConfig = dataclasses.field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        for at, tower in (("vision_cfg", self.vision_cfg), ("text_cfg", self.text_cfg)):
            _require(
                tower.proj_type == "linear" or tower.width == self.embed_dim,
                f"{at}.proj_type='none': needs {at}.width={tower.width} equal to embed_dim={self.embed_dim}",
            )


class TokenizerFacts(Protocol):
    """What a model must know of its tokenizer."""

    vocab_size: int
    context_length: int
    pad_id: int
    eos_id: int


def with_tokenizer(config: ClipConfig, tokenizer: TokenizerFacts) -> ClipConfig:
    """``config`` with what its text section leaves open taken from ``tokenizer``; raises where the two disagree."""
    text = config.text_cfg
    if text.vocab_size is not None and text.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"text_cfg.vocab_size={text.vocab_size}: the tokenizer has {tokenizer.vocab_size} tokens; "
            "use its own size (None) or another tokenizer"
        )
    if tokenizer.context_length > text.context_length:
        raise ConfigError(
            f"text_cfg.context_length={text.context_length}: the tokenizer writes {tokenizer.context_length} tokens; "
            "make the two equal"
        )
    found: dict[str, Any] = {}
    for name in ("pad_id", "eos_id"):
        given, actual = getattr(text, name), getattr(tokenizer, name)
        if given is not None and given != actual:
            raise ConfigError(f"text_cfg.{name}={given}: the tokenizer's is {actual}; set it to None to take that")
        found[name] = actual
    size = tokenizer.vocab_size if text.vocab_size is None else text.vocab_size
    return dataclasses.replace(config, text_cfg=dataclasses.replace(text, vocab_size=size, **found))
