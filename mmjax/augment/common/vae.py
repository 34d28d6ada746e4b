"""Variational autoencoders over image and text features, whose decoded residuals start at zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.augment.common.layers import MlpLayer, TransformerLayer, apply_layers, make_layers, make_zero_linear
from mmjax.core.config import ConfigError

_MAX_LOG_VARIANCE = 10.0  # of its absolute value, so that its exponential stays finite


class MlpVae(nnx.Module):
    """An MLP over the concatenation of both sides: narrowing to z, and widening again."""

    def __init__(self, widths: tuple[int, int], *, z_dim: int, layers: int, rngs: nnx.Rngs):
        self.widths = widths
        layer_widths = [sum(widths), *hidden_widths(sum(widths), z_dim=z_dim, layers=layers)]
        self.encoder = make_layers(lambda a, b: MlpLayer(a, b, rngs=rngs), layer_widths)
        self.mean, self.log_variance = (nnx.Linear(layer_widths[-1], z_dim, rngs=rngs) for _ in range(2))
        self.decoder = make_layers(lambda a, b: MlpLayer(a, b, rngs=rngs), [z_dim, *layer_widths[:0:-1]])
        self.last = make_zero_linear(layer_widths[1] if len(layer_widths) > 1 else z_dim, sum(widths), rngs=rngs)

    def __call__(
        self, image: jax.Array, text: jax.Array, key: jax.Array, *, dropout: float
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """f32[B, D_image], f32[B, D_text] -> residuals of these shapes, and the KL divergence of z from N(0, I)."""
        keys = jax.random.split(key, 3)
        h = apply_layers(self.encoder, jnp.concatenate([image, text], axis=1), keys[0], dropout=dropout)
        mean, log_variance = self.mean(h), jnp.clip(self.log_variance(h), -_MAX_LOG_VARIANCE, _MAX_LOG_VARIANCE)
        z = sample_normal(mean, log_variance, keys[1])
        delta = self.last(apply_layers(self.decoder, z, keys[2], dropout=dropout))
        return (delta[:, : self.widths[0]], delta[:, self.widths[0] :]), kl_to_normal(mean, log_variance)


class AttentionVae(nnx.Module):
    """A transformer over all tokens of a pair's two sides, before and after z."""

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
        if width % heads:
            raise ConfigError(f"augment.lemda.heads={heads}: must divide augment.lemda.width={width}")

        def make_transformer() -> nnx.List:
            return nnx.List([TransformerLayer(width, heads=heads, hidden=hidden, rngs=rngs) for _ in range(layers)])

        self.enter = nnx.List([nnx.Linear(d, width, rngs=rngs) for d in widths])
        self.encoder = make_transformer()
        self.mean, self.log_variance = (nnx.Linear(width, z_dim, rngs=rngs) for _ in range(2))
        self.widen = nnx.Linear(z_dim, width, rngs=rngs)
        self.decoder = make_transformer()
        self.last = nnx.List([make_zero_linear(width, d, rngs=rngs) for d in widths])

    def __call__(
        self, image: jax.Array, text: jax.Array, key: jax.Array, *, dropout: float, valid: jax.Array | None = None
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """f32[B, T, D_image], f32[B, L, D_text] -> residuals of these shapes, and the KL divergence of z from N(0, I).

        ``valid`` bool[B, L]: the text tokens that are not padding. Vectors f32[B, D] are sequences of one token.
        """
        keys = jax.random.split(key, 3)
        rows = image.shape[0]
        sides = [x.reshape(rows, -1, x.shape[-1]) for x in (image, text)]
        patches = sides[0].shape[1]
        mask = None if valid is None else jnp.concatenate([jnp.ones((rows, patches), bool), valid], axis=1)
        tokens = jnp.concatenate([enter(x) for enter, x in zip(self.enter, sides, strict=True)], axis=1)
        h = apply_layers(self.encoder, tokens, keys[0], dropout=dropout, mask=mask)
        mean, log_variance = self.mean(h), jnp.clip(self.log_variance(h), -_MAX_LOG_VARIANCE, _MAX_LOG_VARIANCE)
        h = apply_layers(
            self.decoder, self.widen(sample_normal(mean, log_variance, keys[1])), keys[2], dropout=dropout, mask=mask
        )
        deltas = [self.last[0](h[:, :patches]), self.last[1](h[:, patches:])]
        if valid is not None:
            deltas[1] = jnp.where(valid[..., None], deltas[1], 0.0)
        divergence = kl_to_normal(mean, log_variance, where=mask)
        return (deltas[0].reshape(image.shape), deltas[1].reshape(text.shape)), divergence


def hidden_widths(d: int, *, z_dim: int, layers: int) -> list[int]:
    """Widths between d and z_dim in equal steps; one fewer than ``layers`` if the steps divide evenly."""
    step = (d - z_dim) // (layers + 1)
    if step < 1:
        raise ConfigError(
            f"augment.lemda.layers={layers}: too many between {d} features and augment.lemda.z_dim={z_dim}"
        )
    return list(range(d - step, z_dim + step, -step))


def sample_normal(mean: jax.Array, log_variance: jax.Array, key: jax.Array) -> jax.Array:
    """``μ + ε e^{v/2}`` with ``ε ~ N(0, I)``."""
    return mean + jax.random.normal(key, mean.shape, jnp.float32) * jnp.exp(0.5 * log_variance)


def kl_to_normal(mean: jax.Array, log_variance: jax.Array, *, where: jax.Array | None = None) -> jax.Array:
    """``-½ Σ (1 + v - μ² - e^v) / (B z)`` for [B, ..., z]: a mean over rows and z, a sum over the axes between.

    ``where`` bool[B, ...]: the positions that count.
    """
    terms = 1 + log_variance - jnp.square(mean) - jnp.exp(log_variance)
    if where is not None:
        terms = jnp.where(where[..., None], terms, 0.0)
    return -0.5 * jnp.sum(terms) / (mean.shape[0] * mean.shape[-1])
