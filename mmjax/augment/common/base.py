"""The interface of an augmentation: it taps the network, makes views of the features, and compares their embeddings.

The step runs each tower once. An augmentation gets the clean features at its tap and returns views of them. What lies
after the tap then runs for the views, all of one tap in one batch. Last, the augmentation may compare embeddings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.augment.common.schedules import Strength
from mmjax.core.config import ConfigError
from mmjax.core.sphere import unit
from mmjax.core.types import Metrics, Provenance

Tap = str
"""A place in both towers, from front to back:

``input``: pixels and token embeddings; ``tokens@K``: what enters block K, where negative K count from the end, in
each tower by itself (``tokens@-1``: the last block); ``pooled``: before the projection into the joint space;
``embedding``: after it, and before L2 normalization.
"""

Kind = Literal["input", "tokens", "pooled", "embedding"]

LateTap = Literal["pooled", "embedding"]
"""The taps at which a row is one vector."""

Terms = dict[str, jax.Array]
"""Named losses f32[], each already multiplied by its own factor."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerInfo:
    """What an augmentation may know of the model."""

    image_width: int
    text_width: int
    embed_dim: int
    image_layers: int
    text_layers: int
    vocab_size: int
    eos_id: int
    pad_id: int
    num_prefix_tokens: int  # image tokens in front of the patches: class token and registers
    pooled_image_width: int | None = None  # None: image_width
    class_after_text: bool = False  # whether the text tower pools a token that it appends itself
    takes_sequences: bool = False  # whether images are sequences of frames
    gated: bool = False  # whether gates join the modalities of an example, between pooling and the tap ``pooled``

    def check_tap(self, tap: Tap, *, kinds: Sequence[Kind], path: str) -> None:
        """Raises ConfigError unless the tap is of one of ``kinds`` and within both towers; ``path`` is the option."""
        if self.class_after_text and tap.startswith(("input", "tokens")):
            raise ConfigError(
                f"{path}={tap!r}: model.text_cfg.embed_cls=True appends a token there that no text has; use a later "
                "tap, or pool_type='eos'"
            )
        if self.gated and tap.startswith(("input", "tokens")):
            raise ConfigError(
                f"{path}={tap!r}: model.vision_cfg.fusion='gated' joins an example's modalities behind that tap; use "
                "'pooled' or 'embedding' where the augmentation has them, or leave it out"
            )
        kind, separator, number = tap.partition("@")
        if kind == "tokens" and "tokens" in kinds:
            blocks = min(self.image_layers, self.text_layers)
            if not (separator and number.lstrip("-").isdecimal() and -blocks <= int(number) <= blocks):
                raise ConfigError(f"{path}={tap!r}: expected tokens@K with a block K from {-blocks} to {blocks}")
        elif separator or kind not in kinds:
            known = ", ".join(repr("tokens@K" if k == "tokens" else k) for k in kinds)
            raise ConfigError(f"{path}={tap!r}: must be one of {known}")

    def widths(self, tap: Tap) -> tuple[int, int]:
        """The widths of image and text features at a tap; at ``input``, those of the embedded pixels and tokens."""
        if tap == "embedding":
            return self.embed_dim, self.embed_dim
        if tap == "pooled" and self.pooled_image_width is not None:
            return self.pooled_image_width, self.text_width
        return self.image_width, self.text_width

    def blocks(self, tap: Tap) -> tuple[int, int]:
        """The blocks of the image and the text tower that follow on ``tokens@K`` or ``input``."""
        k = int(tap.partition("@")[2] or 0)
        return (k, k) if k >= 0 else (self.image_layers + k, self.text_layers + k)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenMask:
    """The token ids of texts, and which positions hold words."""

    ids: jax.Array  # i32[M, L]
    valid: jax.Array  # bool[M, L]: up to and with the end token
    content: jax.Array  # bool[M, L]: not the first position, where a start token may be, nor the end, nor padding

    @classmethod
    def from_ids(cls, ids: jax.Array, *, eos_id: int) -> TokenMask:
        """From token ids; the first end token ends a text, whatever pads it."""
        position = jnp.arange(ids.shape[1])
        ended = ids == eos_id
        end = jnp.where(jnp.any(ended, axis=1), jnp.argmax(ended, axis=1), ids.shape[1] - 1)[:, None]
        return cls(ids=ids, valid=position <= end, content=(position > 0) & (position < end))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """Images and texts at a tap, or as unit embeddings, and where their rows come from.

    The rows are laid out as in the batch: images one modality after another, ``examples`` rows each; texts with the
    same number of rows for each example, its captions first. At ``tokens`` the features are sequences,
    [N, T, D_image] and [M, L, D_text]; at ``input`` texts are too, and images are pixels by modality.
    """

    image: Any  # [N, D_image], [N, T, D_image], or {modality: f32[N, H, W, C] on the scale of 0 to 255}
    text: jax.Array  # [M, D_text] or [M, L, D_text]
    image_source: Provenance  # of N rows
    text_source: Provenance  # of M rows
    token_mask: TokenMask | None = None  # where texts are sequences
    image_mask: jax.Array | None = None  # bool[N, T] where images are sequences of frames: which are no padding
    examples: int = dataclasses.field(metadata={"static": True})
    num_prefix_tokens: int = dataclasses.field(default=0, metadata={"static": True})  # see TowerInfo

    def to_unit(self) -> Features:
        """The same rows at length one."""
        return dataclasses.replace(self, image=unit(self.image), text=unit(self.text))

    def pairs(self) -> Features:
        """Each image row with its example's first caption: N rows on both sides."""
        rows = self.image_source.ids.shape[0]
        views = rows // self.examples

        def first(x: jax.Array) -> jax.Array:
            rows = x.reshape(self.examples, -1, *x.shape[1:])[:, 0]
            return rows if views == 1 else jnp.tile(rows, (views,) + (1,) * (rows.ndim - 1))

        text, source, token_mask = jax.tree.map(first, (self.text, self.text_source, self.token_mask))
        return dataclasses.replace(self, text=text, text_source=source, token_mask=token_mask, examples=rows)

    @property
    def image_valid(self) -> jax.Array:
        """bool[N, T], of images that are sequences: ``image_mask``, or all."""
        return jnp.ones(self.image.shape[:2], bool) if self.image_mask is None else self.image_mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Changed features for the rest of the network; a side that is None is the clean one.

    A ``task`` view adds the run's objective over its own rows; a ``consistency`` view is only for ``compare``. With a
    ``frozen`` projection the view trains no parameter that lies after the tap.
    """

    role: Literal["task", "consistency"] = "task"
    name: str = "task"  # of the term and its metrics, unique within the augmentation
    image: Any = None  # as in Features, with N' rows
    text: jax.Array | None = None  # with M' rows
    image_source: Provenance | None = None
    text_source: Provenance | None = None
    ids: jax.Array | None = None  # i32[M', L] of texts that are sequences; None: the clean ones
    image_mask: jax.Array | None = None  # bool[N', T] of images that are frames; None: the clean one
    projection: Literal["trained", "frozen"] = "trained"
    factor: jax.Array | float = 1.0  # on the term, in addition to the augmentation's weight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Similarity:
    """How the model compares unit embeddings."""

    scale: jax.Array  # f32[]
    bias: jax.Array | None = None  # f32[]

    def logits(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        """``scale · rows columnsᵀ + bias``: f32[N, D], f32[M, D] -> f32[N, M]."""
        products = self.scale * jnp.einsum("nd,md->nm", rows, columns, precision=jax.lax.Precision.HIGHEST)
        return products if self.bias is None else products + self.bias


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmented:
    """What an augmentation returns at its tap."""

    views: Sequence[View] = ()
    terms: Terms = dataclasses.field(default_factory=dict)
    metrics: Metrics = dataclasses.field(default_factory=dict)


class Base(nnx.Module):
    """The base class of augmentations; ``weight`` is the factor on all that one adds to the loss.

    At weight 0 the model's parameters change exactly as without the augmentation. A constructor takes its options by
    keyword, and ``towers`` and ``rngs`` if it has such parameters. Parameters of its own are trained by an Adam of
    its own, at ``learning_rate``, with their gradient clipped to ``clip_norm``.
    """

    tap: Tap = "embedding"
    learning_rate: Strength = 1e-4
    clip_norm: float = 1.0

    def __init__(self, *, weight: Strength):
        self.weight = weight

    def augment(self, clean: Features, *, key: jax.Array, step: jax.Array) -> Augmented:
        """Makes views of the features at the tap.

        A pure function of its arguments and parameters: equal keys and steps give equal views.

        Args:
            clean: the clean features at ``tap``.
            key: the random key of this augmentation and step.
            step: i32[], traced.
        """
        return Augmented()

    def compare(
        self, clean: Features, views: Sequence[Features], *, similarity: Similarity, key: jax.Array, step: jax.Array
    ) -> tuple[Terms, Metrics]:
        """Further terms and metrics, from the unit embeddings of the clean rows and of the views.

        Args:
            clean: the clean unit embeddings.
            views: those of each view, in the order in which ``augment`` returned them.
            similarity: the model's scale and bias.
            key: a random key, other than that of ``augment``.
            step: i32[], traced.
        """
        return {}, {}


@jax.custom_vjp
def reverse_gradient(x: jax.Array, factor: jax.Array) -> jax.Array:
    """``x``; its gradient is multiplied by ``-factor`` (Ganin & Lempitsky 2015, arXiv:1409.7495)."""
    return x


def _forward(x: jax.Array, factor: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x, factor


def _backward(factor: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (-factor * cotangent.astype(jnp.float32)).astype(cotangent.dtype), jnp.zeros_like(factor)


reverse_gradient.defvjp(_forward, _backward)
