"""LeMDA: an adversarial variational autoencoder that learns how to change the features of a pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.augment import base, schedules
from mmjax.augment.base import Augmented, Features, Tap, Terms, View, reversed_gradient
from mmjax.augment.networks import Encoder, Unit, in_turn, stack, zero_linear
from mmjax.augment.schedules import Strength
from mmjax.config import ConfigError
from mmjax.types import Metrics

_EXCLUDED = -1e30
_LARGEST = 10.0  # of a log-variance's absolute value, so that its exponential is a number


class Augmentation(base.Base):
    """Learning multimodal data augmentation in feature space (Liu et al. 2023, arXiv:2212.14453) for dual encoders.

    With the pair's features ``z`` at the tap, held still (sg), a network G gives a residual ``Δ = G(sg z, ε)`` for
    both sides; F is what lies after the tap, L the run's objective, GRL the identity with a reversed gradient::

        max_G  adversarial · L(F(z + Δ)) - consistency · C - kl · KL - regulariser · R
        C  = 1/B Σ_b m_b KL(q_b ‖ p_b),   mean over image queries and text queries
        p, q = softmax of the logits of clean and changed pairs;  p and the scale held still
        KL = -½ Σ (1 + v - μ² - e^v) / (B z_dim),   R = mean Δ²

    while F, and in the ``residual`` reading the towers, minimise L(F(z + Δ)). The mask m: ``abs`` is the paper's,
    max p > threshold (almost never true early in contrastive training); ``correct`` also wants the largest to be the
    pair itself; ``rel`` is max p > threshold · (the batch's largest). Readings: ``residual``, ``z + GRL(Δ)``, trains
    the towers on changed pairs too, and C only G; ``faithful``, ``GRL(sg z + Δ)``, trains what lies after the tap on
    them and on C, as the paper's code does. Beside the clean loss the task counts ``weight`` times (paper: once, and
    both halved).

    G is an ``mlp`` over both sides' concatenation of d features, with hidden widths ``range(d - s, z_dim + s, -s)``,
    ``s = ⌊(d - z_dim)/(layers + 1)⌋``, or ``attention`` between the two sides of each pair. Its last layer is linear
    and starts at zero: Δ = 0, with a gradient. The released code differs: its MLP's last layer ends in a ReLU, whose
    gradient at zero is zero, so that it never learns; its attention runs over the batch and not over modalities;
    task and augmenter are clipped together; the augmenter's weight decay is set and not used. Its dropout is 0.5 for
    the MLP and 0.1 for attention.

    Options: ``kind`` of G, ``tap``, ``reading``, ``adversarial``, ``consistency``, ``kl``, ``regulariser``, ``mask``,
    ``threshold``, ``z_dim``, ``layers`` (on each side of z), ``dropout``; of attention ``width``, ``heads``,
    ``hidden``; of G's Adam ``learning_rate``, ``clip_norm``.
    """

    def __init__(
        self,
        *,
        widths: Mapping[Tap, tuple[int, int]],
        rngs: nnx.Rngs,
        weight: Strength = 1.0,
        kind: Literal["mlp", "attention"] = "mlp",
        tap: Tap = "pooled",
        reading: Literal["residual", "faithful"] = "residual",
        adversarial: Strength = 1e-4,
        consistency: Strength = 0.01,
        kl: Strength = 0.1,
        regulariser: Strength = 0.1,
        mask: Literal["abs", "correct", "rel"] = "correct",
        threshold: Strength = 0.5,
        z_dim: int = 8,
        layers: int = 4,
        dropout: float = 0.1,
        width: int = 512,
        heads: int = 8,
        hidden: int = 2048,
        learning_rate: Strength = 1e-4,
        clip_norm: float = 1.0,
    ):
        super().__init__(weight=weight)
        for name, value, low, high in (
            ("adversarial", adversarial, 0, None),
            ("consistency", consistency, 0, None),
            ("kl", kl, 0, None),
            ("regulariser", regulariser, 0, None),
            ("threshold", threshold, 0, None),
            ("z_dim", z_dim, 1, None),
            ("layers", layers, 1, None),
            ("dropout", dropout, 0, 0.99),
            ("learning_rate", learning_rate, 0, None),
        ):
            schedules.check(value, path=f"augment.lemda.{name}", low=low, high=high)
        if not clip_norm > 0:
            raise ConfigError(f"augment.lemda.clip_norm={clip_norm}: must be positive")
        if reading == "faithful" and tap == "embedding":
            raise ConfigError(
                "augment.lemda.reading='faithful' with tap='embedding': changed pairs would train the logit scale "
                "alone; use reading='residual' or tap='pooled'"
            )
        if tap not in widths:
            raise ConfigError(f"augment.lemda.tap={tap!r}: must be one of {', '.join(map(repr, widths))}")
        self.tap, self.reading, self.mask = tap, reading, mask
        self.adversarial, self.consistency, self.kl, self.regulariser = adversarial, consistency, kl, regulariser
        self.threshold, self.dropout = threshold, dropout
        self.learning_rate, self.clip_norm = learning_rate, clip_norm
        if kind == "mlp":
            self.network: MlpVae | AttentionVae = MlpVae(widths[tap], z_dim=z_dim, layers=layers, rngs=rngs)
        else:
            self.network = AttentionVae(
                widths[tap], z_dim=z_dim, layers=layers, width=width, heads=heads, hidden=hidden, rngs=rngs
            )

    def augment(self, clean: Features, *, key: jax.Array, step: jax.Array) -> Augmented:
        """Changed pairs to train on, and the same to compare."""
        pairs = clean.pairs()
        still = [jax.lax.stop_gradient(x).astype(jnp.float32) for x in (pairs.image, pairs.text)]
        deltas, mean, log_variance = self.network(still[0], still[1], key, dropout=self.dropout)
        factor = schedules.at(self.adversarial, step)
        sides = (pairs.image, pairs.text)
        held = [(x + d).astype(z.dtype) for x, d, z in zip(still, deltas, sides, strict=True)]
        if self.reading == "faithful":
            trained = [reversed_gradient(x, factor) for x in held]
        else:
            changed = [z.astype(jnp.float32) + reversed_gradient(d, factor) for z, d in zip(sides, deltas, strict=True)]
            trained = [x.astype(z.dtype) for x, z in zip(changed, sides, strict=True)]
        task = View(image=trained[0], text=trained[1], image_source=pairs.image_source, text_source=pairs.text_source)
        # What C is measured on: the same values, with other gradients.
        compared = dataclasses.replace(
            task,
            name="held",
            role="consistency",
            image=held[0],
            text=held[1],
            projection="trained" if self.reading == "faithful" else "frozen",
        )
        divergence = kl_to_normal(mean, log_variance)
        size = jnp.mean(jnp.concatenate([jnp.square(d) for d in deltas], axis=1))
        relative = [
            _length(jax.lax.stop_gradient(d)) / jnp.maximum(_length(x), 1e-12)
            for d, x in zip(deltas, still, strict=True)
        ]
        return Augmented(
            views=[task, compared],
            terms={
                "kl": schedules.at(self.kl, step) * divergence,
                "regulariser": schedules.at(self.regulariser, step) * size,
            },
            metrics={
                "divergence": divergence,
                "image_residual": relative[0],
                "text_residual": relative[1],
            },
        )

    def compare(
        self, clean: Features, views: Sequence[Features], *, scale: jax.Array, key: jax.Array, step: jax.Array
    ) -> tuple[Terms, Metrics]:
        """The masked divergence of the changed pairs' predictions from the clean ones'."""
        pairs, changed = clean.pairs(), views[1]
        scale = jax.lax.stop_gradient(scale)
        valid = pairs.image_source.valid & pairs.text_source.valid
        threshold = schedules.at(self.threshold, step)

        def logits(f: Features) -> jax.Array:
            return scale * jnp.einsum("nd,md->nm", f.image, f.text, precision=jax.lax.Precision.HIGHEST)

        before, after = jax.lax.stop_gradient(logits(pairs)), logits(changed)
        values, kept = zip(
            *(
                consistency(a, b, valid=valid, threshold=threshold, mask=self.mask)
                for a, b in ((after, before), (after.T, before.T))
            ),
            strict=True,
        )
        value = 0.5 * (values[0] + values[1])
        metrics = {"divergence_from_clean": value, "confident_share": 0.5 * (kept[0] + kept[1])}
        return {"consistency": schedules.at(self.consistency, step) * value}, metrics


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
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array, jax.Array]:
        """f32[B, D_image], f32[B, D_text] -> residuals of these shapes, mean and log-variance f32[B, z]."""
        keys = jax.random.split(key, 3)
        h = in_turn(self.encoder, jnp.concatenate([image, text], axis=1), keys[0], dropout=dropout)
        mean, log_variance = self.mean(h), jnp.clip(self.log_variance(h), -_LARGEST, _LARGEST)
        z = drawn(mean, log_variance, keys[1])
        delta = self.last(in_turn(self.decoder, z, keys[2], dropout=dropout))
        return (delta[:, : self.widths[0]], delta[:, self.widths[0] :]), mean, log_variance


class AttentionVae(nnx.Module):
    """The two sides as two tokens that attend to each other, before and after z; each pair by itself."""

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
        self, image: jax.Array, text: jax.Array, key: jax.Array, *, dropout: float
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array, jax.Array]:
        """f32[B, D_image], f32[B, D_text] -> residuals of these shapes, mean and log-variance f32[B, 2, z]."""
        keys = jax.random.split(key, 3)
        tokens = jnp.stack([enter(x) for enter, x in zip(self.enter, (image, text), strict=True)], axis=1)
        h = in_turn(self.encoder, tokens, keys[0], dropout=dropout)
        mean, log_variance = self.mean(h), jnp.clip(self.log_variance(h), -_LARGEST, _LARGEST)
        h = in_turn(self.decoder, self.widen(drawn(mean, log_variance, keys[1])), keys[2], dropout=dropout)
        return (self.last[0](h[:, 0]), self.last[1](h[:, 1])), mean, log_variance


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


def kl_to_normal(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """``-½ Σ (1 + v - μ² - e^v) / (B z)`` for [B, ..., z]: a sum over what lies between, as over modalities."""
    total = -0.5 * jnp.sum(1 + log_variance - jnp.square(mean) - jnp.exp(log_variance))
    return total / (mean.shape[0] * mean.shape[-1])


def consistency(
    changed: jax.Array,  # f32[B, B] logits
    clean: jax.Array,  # f32[B, B] logits
    *,
    valid: jax.Array,  # bool[B]
    threshold: jax.Array,
    mask: Literal["abs", "correct", "rel"],
) -> tuple[jax.Array, jax.Array]:
    """``1/B Σ_b m_b KL(softmax changed_b ‖ softmax clean_b)`` and the share of rows in the mask; B without padding."""
    log_q, log_p = (jax.nn.log_softmax(jnp.where(valid, x, _EXCLUDED), axis=1) for x in (changed, clean))
    top = jnp.exp(jnp.max(log_p, axis=1))
    if mask == "rel":
        threshold = threshold * jnp.max(jnp.where(valid, top, 0.0))
    confident = valid & (top > threshold)
    if mask == "correct":
        confident &= jnp.argmax(log_p, axis=1) == jnp.arange(log_p.shape[0])
    both = valid[:, None] & valid[None, :]
    divergence = jnp.sum(jnp.where(both, jnp.exp(log_q) * (log_q - log_p), 0.0), axis=1)
    count = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)
    share = jnp.sum(confident, dtype=jnp.float32) / count
    return jnp.sum(jnp.where(confident, divergence, 0.0)) / count, share


def _length(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))
