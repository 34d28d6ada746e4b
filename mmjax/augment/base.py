"""What an augmentation is: a module that taps the network, makes views there, and compares what becomes of them.

The step runs each tower once. At the tap an augmentation gets the clean features and answers with views of them; what
lies after the tap runs for the views too, all in one batch; then the augmentation may compare embeddings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.augment import schedules
from mmjax.augment.schedules import Strength
from mmjax.types import Metrics, Provenance

Tap = Literal["pooled", "embedding"]
"""Before the projection into the joint space, or after it (and before L2 normalisation)."""

Terms = dict[str, jax.Array]
"""Named losses f32[], each already multiplied by its own factor."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """Both sides at a tap (or, once compared, as unit embeddings), and where their rows come from.

    Images and texts are laid out as the batch is: the rows of one modality after those of another, ``examples`` rows
    each; and for each example the same number of text rows, its captions first.
    """

    image: jax.Array  # [N, D_image]
    text: jax.Array  # [M, D_text]
    image_source: Provenance  # of N rows
    text_source: Provenance  # of M rows
    examples: int = dataclasses.field(metadata={"static": True})

    def pairs(self) -> Features:
        """Each image row beside its example's first caption: N rows on both sides, row i with row i."""
        views = self.image.shape[0] // self.examples

        def first(x: jax.Array) -> jax.Array:
            rows = x.reshape(self.examples, -1, *x.shape[1:])[:, 0]
            return rows if views == 1 else jnp.tile(rows, (views,) + (1,) * (rows.ndim - 1))

        source = Provenance(ids=first(self.text_source.ids), weight=first(self.text_source.weight))
        return dataclasses.replace(self, text=first(self.text), text_source=source, examples=self.image.shape[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Features for the rest of the network; a side that is None is the clean one.

    ``task``: one more term of the run's objective, over the view's own rows. ``consistency``: only for ``compare``.
    A view whose projection is ``frozen`` moves no parameter of the model, only what its features came from.
    """

    role: Literal["task", "consistency"] = "task"
    name: str = "task"  # of the term and its metrics, unique within the augmentation
    image: jax.Array | None = None  # [N', D_image]
    text: jax.Array | None = None  # [M', D_text]
    image_source: Provenance | None = None
    text_source: Provenance | None = None
    projection: Literal["trained", "frozen"] = "trained"
    factor: jax.Array | float = 1.0  # on the term, besides the augmentation's weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmented:
    """An augmentation's answer at the tap."""

    views: Sequence[View] = ()
    terms: Terms = dataclasses.field(default_factory=dict)
    metrics: Metrics = dataclasses.field(default_factory=dict)


class Base(nnx.Module):
    """What every augmentation has; ``weight`` is the factor on all that it adds to the loss.

    At weight 0 the model's parameters move exactly as they would without it. A constructor takes its options by
    keyword and, where it asks for them, ``widths`` (for each tap, those of image and text) and ``rngs``. Parameters
    of its own are trained by an Adam of its own, at ``learning_rate``, clipped to ``clip_norm`` alone.
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
        self, clean: Features, views: Sequence[Features], *, scale: jax.Array, key: jax.Array, step: jax.Array
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
