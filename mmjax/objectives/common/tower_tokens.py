"""What an objective gets that runs modules of the model on both towers' tokens, not on embeddings alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Map = Callable[[Callable[[Any, Any], Any], Any], Any]
"""``map(f, rows)`` is ``f(model, rows)``, one micro-batch of examples at a time, for trees of arrays whose first axis
counts examples (or several times as many, one batch after another), and an ``f`` that treats every row alone.
"""


class LabelTable(NamedTuple):
    """The sequences of labels of a batch's examples, which may share ids, as recordings of one thing do."""

    ids: jax.Array  # i32[B]: the examples
    labels: jax.Array  # i32[B, G]: of each, with -1 behind them; -1 alone where none are known

    def find(self, ids: jax.Array) -> jax.Array:
        """The labels of rows whose first source is the example in their place: i32[B, K] -> i32[B, K, G].

        Others are found by their ids. It is -1 alone for those not in the batch, and where examples with one id have
        different labels.
        """
        first = jnp.argmax(self.ids[:, None] == self.ids, axis=-1)
        differs = jnp.any(self.labels != self.labels[first], axis=-1)
        same = ids[..., None] == self.ids
        is_clear = jnp.any(same, axis=-1) & ~jnp.any(same & differs, axis=-1)
        labels = jnp.where(is_clear[..., None], self.labels[jnp.argmax(same, axis=-1)], -1)
        own = jnp.where((ids[:, 0] == self.ids)[:, None], self.labels, labels[:, 0])
        return labels.at[:, 0].set(own)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerTokens:
    """The tokens at the towers' ends, and the model to run them through.

    Rows are laid out as in the batch: images one modality after another, ``examples`` rows each; texts with the same
    number of rows for each example, one example after another.

    Args:
        image: [N, T, D_image], what ``VisionTower.run`` returns as its sequence.
        text: [M, L, D_text], likewise of ``TextTower.run``.
        ids: i32[M, L], the tokens of the texts.
        valid: bool[M, L], which of them are the text's: up to and with its end token.
        blended: Whether a text of several sources is a blend of their tokens, so that its ids are no text; otherwise
            it is a text like others, such as two captions one after the other.
        examples: How many examples there are.
        model: The whole model, for its modules and for the towers once more; ``map`` passes it on.
        map: Runs a function in micro-batches, and again in the backward pass.
        key: A random key of this step.
        image_valid: bool[N, T] of images that are sequences: which tokens are no padding.
        labels: Of all examples, if the objective reads them.
    """

    image: jax.Array
    text: jax.Array
    ids: jax.Array
    valid: jax.Array
    blended: bool
    examples: int
    model: Any
    map: Map
    key: jax.Array
    image_valid: jax.Array | None = None
    labels: LabelTable | None = None

    def images_by_example(self, rows: jax.Array) -> jax.Array:
        """An array of image rows [N, …] as [examples, modalities, …]."""
        return rows.reshape(-1, self.examples, *rows.shape[1:]).swapaxes(0, 1)

    def texts_by_example(self, rows: jax.Array) -> jax.Array:
        """An array of text rows [M, …] as [examples, texts, …]."""
        return rows.reshape(self.examples, -1, *rows.shape[1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class MomentumFeatures:
    """What the moving average of the model makes of the same batch; nothing of it has a gradient.

    Args:
        image: f32[N, D], unit rows.
        text: f32[M, D], unit rows.
        tokens: The tokens of its towers, and the model with its parameters.
    """

    image: jax.Array
    text: jax.Array
    tokens: TowerTokens
