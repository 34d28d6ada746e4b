"""What an augmentation is: a module that taps the network, makes views there, and compares what becomes of them.

The step runs each tower once. At the tap an augmentation gets the clean features and answers with views of them; what
lies after the tap runs for the views too, all of one tap in one batch; then the augmentation may compare embeddings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.augment.common import schedules
from mmjax.augment.common.schedules import Strength
from mmjax.core.config import ConfigError
from mmjax.core.types import Metrics, Provenance

Tap = str
"""A place in both towers, from front to back:

``input``: pixels and token embeddings; ``tokens@K``: what enters block K, or for negative K the block that is as far
from the end (``tokens@-1``: the last), each tower counting its own; ``pooled``: before the projection into the joint
space; ``embedding``: after it, and before L2 normalisation.
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

    def check(self, tap: Tap, *, kinds: Sequence[Kind], path: str) -> None:
        """Raises unless the tap is of one of these kinds and lies within both towers; ``path`` is the option."""
        kind, at, number = tap.partition("@")
        if kind == "tokens" and "tokens" in kinds:
            least = min(self.image_layers, self.text_layers)
            if not (at and number.lstrip("-").isdecimal() and -least <= int(number) <= least):
                raise ConfigError(f"{path}={tap!r}: expected tokens@K with a block K from {-least} to {least}")
        elif at or kind not in kinds:
            known = ", ".join(repr("tokens@K" if k == "tokens" else k) for k in kinds)
            raise ConfigError(f"{path}={tap!r}: must be one of {known}")

    def widths(self, tap: Tap) -> tuple[int, int]:
        """Of the features of images and texts at a tap; pixels have none, and count as what they become."""
        if tap == "embedding":
            return self.embed_dim, self.embed_dim
        return self.image_width, self.text_width

    def blocks(self, tap: Tap) -> tuple[int, int]:
        """The blocks of the two towers before which ``tokens@K`` (or ``input``: the first) lies."""
        k = int(tap.partition("@")[2] or 0)
        return (k, k) if k >= 0 else (self.image_layers + k, self.text_layers + k)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenMask:
    """What the positions of texts hold."""

    ids: jax.Array  # i32[M, L]
    valid: jax.Array  # bool[M, L]: up to the end token, and it
    content: jax.Array  # bool[M, L]: neither the first position, where a start token may be, nor the end, nor padding

    @classmethod
    def from_ids(cls, ids: jax.Array, *, eos_id: int) -> TokenMask:
        """From token ids; the first end token ends a text, whatever pads it."""
        place = jnp.arange(ids.shape[1])
        ended = ids == eos_id
        end = jnp.where(jnp.any(ended, axis=1), jnp.argmax(ended, axis=1), ids.shape[1] - 1)[:, None]
        return cls(ids=ids, valid=place <= end, content=(place > 0) & (place < end))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """Both sides at a tap (or, once compared, as unit embeddings), and where their rows come from.

    Images and texts are laid out as the batch is: the rows of one modality after those of another, ``examples`` rows
    each; and for each example the same number of text rows, its captions first. At ``tokens`` the features are
    sequences, [N, T, D_image] and [M, L, D_text]; at ``input`` the texts are too, and images are pixels by modality.
    """

    image: Any  # [N, D_image], [N, T, D_image], or {modality: f32[N, H, W, C] on the scale of 0 to 255}
    text: jax.Array  # [M, D_text] or [M, L, D_text]
    image_source: Provenance  # of N rows
    text_source: Provenance  # of M rows
    token_mask: TokenMask | None = None  # where texts are sequences
    examples: int = dataclasses.field(metadata={"static": True})
    num_prefix_tokens: int = dataclasses.field(default=0, metadata={"static": True})  # see TowerInfo

    def pairs(self) -> Features:
        """Each image row beside its example's first caption: N rows on both sides, row i with row i."""
        rows = self.image_source.ids.shape[0]
        views = rows // self.examples

        def first(x: jax.Array) -> jax.Array:
            rows = x.reshape(self.examples, -1, *x.shape[1:])[:, 0]
            return rows if views == 1 else jnp.tile(rows, (views,) + (1,) * (rows.ndim - 1))

        text, source, token_mask = jax.tree.map(first, (self.text, self.text_source, self.token_mask))
        return dataclasses.replace(self, text=text, text_source=source, token_mask=token_mask, examples=rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Features for the rest of the network; a side that is None is the clean one.

    ``task``: one more term of the run's objective, over the view's own rows. ``consistency``: only for ``compare``.
    A view whose projection, and blocks before it, are ``frozen`` moves no parameter that lies after the tap.
    """

    role: Literal["task", "consistency"] = "task"
    name: str = "task"  # of the term and its metrics, unique within the augmentation
    image: Any = None  # as in Features, with N' rows
    text: jax.Array | None = None  # with M' rows
    image_source: Provenance | None = None
    text_source: Provenance | None = None
    ids: jax.Array | None = None  # i32[M', L] of texts that are sequences, where not the clean ones
    projection: Literal["trained", "frozen"] = "trained"
    factor: jax.Array | float = 1.0  # on the term, besides the augmentation's weight


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
    """An augmentation's answer at the tap."""

    views: Sequence[View] = ()
    terms: Terms = dataclasses.field(default_factory=dict)
    metrics: Metrics = dataclasses.field(default_factory=dict)


class Base(nnx.Module):
    """What makes views; ``weight`` is the factor on all that it adds to the loss.

    At weight 0 the model's parameters move exactly as they would without it. A constructor takes its options by
    keyword and, where it asks for them, ``towers`` and ``rngs``. Parameters of its own are trained by an Adam of its
    own, at ``learning_rate``, clipped to ``clip_norm`` alone.
    """

    tap: Tap = "embedding"
    learning_rate: Strength = 1e-4
    clip_norm: float = 1.0

    def __init__(self, *, weight: Strength):
        schedules.check(weight, path=f"augment.{self.name()}.weight")
        self.weight = weight

    @classmethod
    def name(cls) -> str:
        """The module's file name, which is the augmentation's name in a config."""
        return cls.__module__.rpartition(".")[2]

    def augment(self, clean: Features, *, key: jax.Array, step: jax.Array) -> Augmented:
        """Views of the features at the tap, a pure function of them, the parameters, ``key`` and ``step``."""
        return Augmented()

    def compare(
        self, clean: Features, views: Sequence[Features], *, similarity: Similarity, key: jax.Array, step: jax.Array
    ) -> tuple[Terms, Metrics]:
        """Further losses of the clean unit embeddings and those of the views, in the views' order."""
        return {}, {}


@jax.custom_vjp
def reversed_gradient(x: jax.Array, factor: jax.Array) -> jax.Array:
    """``x``; its gradient is multiplied by ``-factor`` (Ganin & Lempitsky 2015, arXiv:1409.7495)."""
    return x


def _forward(x: jax.Array, factor: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x, factor


def _backward(factor: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (-factor * cotangent.astype(jnp.float32)).astype(cotangent.dtype), jnp.zeros_like(factor)


reversed_gradient.defvjp(_forward, _backward)
