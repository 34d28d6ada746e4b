"""A generator of tokens and a discriminator that tells them from real ones, trained in one backward pass."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.augment.common.base import Terms, reversed_gradient
from mmjax.augment.common.layers import dropped
from mmjax.core.numerics import masked_mean
from mmjax.core.types import Metrics

Game = Literal["minimax", "nonsaturating"]
"""How the generator is trained: by the discriminator's loss reversed, or by one of its own (see ``played``)."""


def dense(layer: nnx.Linear, x: jax.Array) -> jax.Array:
    """``x · kernel + bias`` in x's dtype: sequences have too many rows for products in float32."""
    y = x @ layer.kernel[...].astype(x.dtype)
    return y if layer.bias is None else y + layer.bias[...].astype(x.dtype)


class Generator(nnx.Module):
    """``linear(tanh(dropout(linear(x))))`` of each token."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.fc1, self.fc2 = nnx.Linear(width, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array, *, dropout: float) -> jax.Array:
        """x [..., width] -> the same shape and dtype."""
        return dense(self.fc2, jnp.tanh(dropped(dense(self.fc1, x), key, share=dropout)))


class Discriminator(nnx.Module):
    """``linear(relu(dropout(linear(x))))``: one logit for each token, positive for a real one; half as wide inside."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        hidden = max(width // 2, 1)
        self.fc1, self.fc2 = nnx.Linear(width, hidden, rngs=rngs), nnx.Linear(hidden, 1, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array, *, dropout: float) -> jax.Array:
        """x [..., width] -> f32[...]."""
        hidden = jax.nn.relu(dropped(dense(self.fc1, x), key, share=dropout))
        return self.fc2(hidden.astype(jnp.float32))[..., 0]


def played(
    discriminator: Discriminator,
    real: jax.Array,  # [B, L, D]
    made: jax.Array,  # [B, L, D]
    *,
    where: jax.Array,  # bool[B, L]: the tokens that count
    game: Game,
    key: jax.Array,
    dropout: float,
) -> tuple[Terms, Metrics]:
    """Losses of both players (Goodfellow et al. 2014, arXiv:1406.2661), means over tokens, and D's accuracies.

    With ``CE(D(x), 1) = softplus(-D(x))`` and ``CE(D(x), 0) = softplus(D(x))``::

        minimax:        adversarial   = CE(D(sg real), 1) + CE(D(GRL(made)), 0)
        nonsaturating:  discriminator = CE(D(sg real), 1) + CE(D(sg made), 0)
                        generator     = CE(sg D(made), 1)

    Nothing here moves what the real tokens came from. A discriminator that knows nothing has a loss of 2 ln 2.
    """
    keys = jax.random.split(key)
    one = jnp.float32(1)
    held = reversed_gradient(made, one) if game == "minimax" else jax.lax.stop_gradient(made)
    on_real = discriminator(jax.lax.stop_gradient(real), keys[0], dropout=dropout)
    on_made = discriminator(held, keys[1], dropout=dropout)
    against = masked_mean(jax.nn.softplus(-on_real), where) + masked_mean(jax.nn.softplus(on_made), where)
    metrics: Metrics = {
        "real_accuracy": masked_mean(on_real > 0, where),
        "made_accuracy": masked_mean(on_made < 0, where),
    }
    if game == "minimax":
        return {"adversarial": against}, metrics
    graph, state = nnx.split(discriminator)
    frozen = nnx.merge(graph, jax.lax.stop_gradient(state))
    deceived = masked_mean(jax.nn.softplus(-frozen(made, keys[1], dropout=dropout)), where)
    return {"discriminator": against, "generator": deceived}, metrics
