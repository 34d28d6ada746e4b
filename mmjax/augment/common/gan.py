"""A generator of tokens and a discriminator that tells them from real ones, trained in one backward pass."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.augment.common.base import Terms, reverse_gradient
from mmjax.augment.common.layers import apply_dropout, apply_linear
from mmjax.core.numerics import masked_mean
from mmjax.core.types import Metrics

GanLoss = Literal["minimax", "nonsaturating"]
"""How the generator is trained: by the discriminator's loss with its gradient reversed, or by a loss of its own."""


class Generator(nnx.Module):
    """``linear(tanh(dropout(linear(x))))`` of each token."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.fc1, self.fc2 = nnx.Linear(width, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array, *, dropout: float) -> jax.Array:
        """x [..., width] -> the same shape and dtype."""
        return apply_linear(self.fc2, jnp.tanh(apply_dropout(apply_linear(self.fc1, x), key, rate=dropout)))


class Discriminator(nnx.Module):
    """``linear(relu(dropout(linear(x))))``, half as wide inside: one logit for each token, positive for a real one."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        hidden = max(width // 2, 1)
        self.fc1, self.fc2 = nnx.Linear(width, hidden, rngs=rngs), nnx.Linear(hidden, 1, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array, *, dropout: float) -> jax.Array:
        """x [..., width] -> f32[...]."""
        hidden = jax.nn.relu(apply_dropout(apply_linear(self.fc1, x), key, rate=dropout))
        return self.fc2(hidden.astype(jnp.float32))[..., 0]


def gan_losses(
    discriminator: Discriminator,
    real: jax.Array,  # [B, L, D]
    fake: jax.Array,  # [B, L, D]
    *,
    where: jax.Array,  # bool[B, L]: the tokens that count
    gan_loss: GanLoss,
    key: jax.Array,
    dropout: float,
) -> tuple[Terms, Metrics]:
    """Losses of generator and discriminator (Goodfellow et al. 2014, arXiv:1406.2661), and D's accuracies.

    Means over tokens, with ``CE(D(x), 1) = softplus(-D(x))``, ``CE(D(x), 0) = softplus(D(x))``, sg the stopped and
    GRL the reversed gradient::

        minimax:        adversarial   = CE(D(sg real), 1) + CE(D(GRL(fake)), 0)
        nonsaturating:  discriminator = CE(D(sg real), 1) + CE(D(sg fake), 0)
                        generator     = CE(sg D(fake), 1)

    No gradient reaches what the real tokens were computed from. A discriminator that guesses has a loss of 2 ln 2.
    """
    keys = jax.random.split(key)
    one = jnp.float32(1)
    for_discriminator = reverse_gradient(fake, one) if gan_loss == "minimax" else jax.lax.stop_gradient(fake)
    on_real = discriminator(jax.lax.stop_gradient(real), keys[0], dropout=dropout)
    on_fake = discriminator(for_discriminator, keys[1], dropout=dropout)
    loss = masked_mean(jax.nn.softplus(-on_real), where) + masked_mean(jax.nn.softplus(on_fake), where)
    metrics: Metrics = {
        "real_accuracy": masked_mean(on_real > 0, where),
        "fake_accuracy": masked_mean(on_fake < 0, where),
    }
    if gan_loss == "minimax":
        return {"adversarial": loss}, metrics
    graph, state = nnx.split(discriminator)
    frozen = nnx.merge(graph, jax.lax.stop_gradient(state))
    generator_loss = masked_mean(jax.nn.softplus(-frozen(fake, keys[1], dropout=dropout)), where)
    return {"discriminator": loss, "generator": generator_loss}, metrics
