"""A head that names the label of each frame of a sequence, for connectionist temporal classification (CTC)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models.config import ClipConfig
from mmjax.models.layers import Dense, normal


class Recognizer(nnx.Module):
    """One linear map from the image tower's last tokens to labels and a blank (Graves et al., ICML 2006).

    Label k is class k, and the last class is the blank, as in XmDA's alignment (PyTorch and optax have it first).
    """

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs, dtype: Any):
        assert config.recognizer is not None
        width, self.blank = config.vision_cfg.width, len(config.recognizer.labels)
        self.head = Dense((width,), (self.blank + 1,), init=normal(width**-0.5), rngs=rngs, dtype=dtype)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens [N, T, width] -> logits f32[N, T, labels + 1]."""
        return self.head(tokens).astype(jnp.float32)


def collapse_path(path: jax.Array, *, blank: int) -> jax.Array:
    """What a path of classes spells: repeated classes are one, then blanks are left out.

    Args:
        path: i32[N, T], the class of each frame.
        blank: The class of none.

    Returns:
        i32[N, T]: labels in front, -1 behind them.
    """
    before = jnp.pad(path[:, :-1], ((0, 0), (1, 0)), constant_values=blank)
    spelled = (path != blank) & (path != before)
    labels = jnp.where(spelled, path, -1)
    order = jnp.argsort(~spelled, axis=1, stable=True)
    return jnp.take_along_axis(labels, order, axis=1)


def decode_greedily(logits: jax.Array, valid: jax.Array | None, *, blank: int) -> jax.Array:
    """The labels i32[N, T] of the likeliest class of each frame, -1 behind them.

    Args:
        logits: [N, T, labels + 1].
        valid: bool[N, T], which frames are no padding; None: all.
        blank: The class of none.
    """
    path = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return collapse_path(path if valid is None else jnp.where(valid, path, blank), blank=blank)


def read_labels(model: Any, images: Mapping[str, jax.Array]) -> jax.Array:
    """The labels i32[N, T] that a model with ``visual`` and ``recognizer`` reads in sequences, -1 behind them."""
    valid = model.visual.valid(images)
    sequence = model.visual.run(model.visual.embed(images), with_sequence=True, valid=valid).sequence
    return decode_greedily(model.recognizer(sequence), valid, blank=model.recognizer.blank)
