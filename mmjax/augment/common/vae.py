"""Variational autoencoders over the two sides of pairs, which decode to residuals that start at zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.augment.common.layers import Encoder, Unit, in_turn, stack, zero_linear
from mmjax.core.config import ConfigError

_LARGEST = 10.0  # of a log-variance's absolute value, so that its exponential is a number


class MlpVae(nnx.Module):
    """Both sides' concatenation through a narrowing and a widening MLP with z between."""

    def __init__(self, widths: tuple[int, int], *, z_dim: int, layers: int, rngs: nnx.Rngs):
        self.widths = widths
        steps = [sum(widths), *hidden_widths(sum(widths), z_dim=z_dim, layers=layers)]
        self.encoder = stack(lambda a, b: Unit(a, b, rngs=rngs), steps)
        self.mean, self.log_variance = (nnx.Linear(steps[-1], z_dim, rngs=rngs) for _ in range(2))
        self.decoder = stack(lambda a, b: Unit(a, b, rngs=rngs), [z_dim, *steps[:0:-1]])
        self.last = zero_linear(steps[1] if len(steps) > 1 else z_dim, sum(widths), rngs=rngs)

    def __call__(
        self, image: jax.Array, text: jax.Array, key: jax.Array, *, dropout: float
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """f32[B, D_image], f32[B, D_text] -> residuals of these shapes, and the divergence of z from the normal."""
        keys = jax.random.split(key, 3)
        h = in_turn(self.encoder, jnp.concatenate([image, text], axis=1), keys[0], dropout=dropout)
        mean, log_variance = self.mean(h), jnp.clip(self.log_variance(h), -_LARGEST, _LARGEST)
        z = drawn(mean, log_variance, keys[1])
        delta = self.last(in_turn(self.decoder, z, keys[2], dropout=dropout))
        return (delta[:, : self.widths[0]], delta[:, self.widths[0] :]), kl_to_normal(mean, log_variance)


class AttentionVae(nnx.Module):
    """All tokens of both sides attend to each other, before and after z; each pair by itself."""

    def __init__(
        self,
        widths: tuple[int, int],
        *,
        z_dim: int,
        layers: int,
        width: int,
        heads: int,
        hidden: int,
        rngs: nnx.Rngs,
    ):
        if width < 1 or heads < 1 or width % heads:
            raise ConfigError(f"augment.lemda.heads={heads}: must divide augment.lemda.width={width}")
        if hidden < 1:
            raise ConfigError(f"augment.lemda.hidden={hidden}: must be at least 1")
        make = lambda: nnx.List([Encoder(width, heads=heads, hidden=hidden, rngs=rngs) for _ in range(layers)])  # noqa: E731
        self.enter = nnx.List([nnx.Linear(d, width, rngs=rngs) for d in widths])
        self.encoder = make()
        self.mean, self.log_variance = (nnx.Linear(width, z_dim, rngs=rngs) for _ in range(2))
        self.widen = nnx.Linear(z_dim, width, rngs=rngs)
        self.decoder = make()
        self.last = nnx.List([zero_linear(width, d, rngs=rngs) for d in widths])

    def __call__(
        self, image: jax.Array, text: jax.Array, key: jax.Array, *, dropout: float, valid: jax.Array | None = None
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """f32[B, T, D_image], f32[B, L, D_text] -> residuals of these shapes, and the divergence of z from the normal.

        ``valid`` bool[B, L] are the text tokens that are no padding. Vectors f32[B, D] are sequences of one token.
        """
        keys = jax.random.split(key, 3)
        rows = image.shape[0]
        sides = [x.reshape(rows, -1, x.shape[-1]) for x in (image, text)]
        patches = sides[0].shape[1]
        seen = None if valid is None else jnp.concatenate([jnp.ones((rows, patches), bool), valid], axis=1)
        tokens = jnp.concatenate([enter(x) for enter, x in zip(self.enter, sides, strict=True)], axis=1)
        h = in_turn(self.encoder, tokens, keys[0], dropout=dropout, seen=seen)
        mean, log_variance = self.mean(h), jnp.clip(self.log_variance(h), -_LARGEST, _LARGEST)
        h = in_turn(self.decoder, self.widen(drawn(mean, log_variance, keys[1])), keys[2], dropout=dropout, seen=seen)
        deltas = [self.last[0](h[:, :patches]), self.last[1](h[:, patches:])]
        if valid is not None:
            deltas[1] = jnp.where(valid[..., None], deltas[1], 0.0)
        divergence = kl_to_normal(mean, log_variance, where=seen)
        return (deltas[0].reshape(image.shape), deltas[1].reshape(text.shape)), divergence


def hidden_widths(d: int, *, z_dim: int, layers: int) -> list[int]:
    """Widths between d and z_dim in equal steps; one fewer than ``layers`` where the steps come out even."""
    step = (d - z_dim) // (layers + 1)
    if step < 1:
        raise ConfigError(
            f"augment.lemda.layers={layers}: no room for them between {d} features and augment.lemda.z_dim={z_dim}"
        )
    return list(range(d - step, z_dim + step, -step))


def drawn(mean: jax.Array, log_variance: jax.Array, key: jax.Array) -> jax.Array:
    """``μ + ε e^{v/2}`` with ``ε ~ N(0, I)``."""
    return mean + jax.random.normal(key, mean.shape, jnp.float32) * jnp.exp(0.5 * log_variance)


def kl_to_normal(mean: jax.Array, log_variance: jax.Array, *, where: jax.Array | None = None) -> jax.Array:
    """``-½ Σ (1 + v - μ² - e^v) / (B z)`` for [B, ..., z]: a sum over what lies between, as over modalities.

    ``where`` bool[B, ...] are the places that count; B are all rows.
    """
    terms = 1 + log_variance - jnp.square(mean) - jnp.exp(log_variance)
    if where is not None:
        terms = jnp.where(where[..., None], terms, 0.0)
    return -0.5 * jnp.sum(terms) / (mean.shape[0] * mean.shape[-1])
