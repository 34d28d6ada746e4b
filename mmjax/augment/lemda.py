"""LeMDA: an adversarial variational autoencoder that learns how to change the features of a pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.augment.common import base, schedules
from mmjax.augment.common.base import (
    Augmented,
    Features,
    Similarity,
    Tap,
    Terms,
    TowerInfo,
    View,
    reverse_gradient,
)
from mmjax.augment.common.divergences import Mask, bernoulli_consistency, softmax_consistency
from mmjax.augment.common.mixing import shared_source
from mmjax.augment.common.schedules import Strength
from mmjax.augment.common.vae import AttentionVae, MlpVae
from mmjax.core.config import Between, ConfigError, Ge, Gt
from mmjax.core.types import Metrics


class Augmentation(base.Base):
    """Adds learned residuals to a pair's features: LeMDA (Liu et al. 2023, arXiv:2212.14453) for dual encoders.

    From the pair's features ``z`` at the tap, with stopped gradient (sg), a network G makes a residual
    ``Δ = G(sg z, ε)`` for both sides. F is what lies after the tap, L the run's objective::

        max_G  adversarial · L(F(z + Δ)) - consistency · C - kl · KL - regularizer · R
        C  = 1/B Σ_b m_b KL(q_b ‖ p_b),   mean over image queries and text queries
        p, q = softmax of the logits of clean and changed pairs;  p and the scale with stopped gradient
        KL = -½ Σ (1 + v - μ² - e^v) / (B z_dim),   R = mean Δ²

    while F, and with ``reading="residual"`` the towers, minimize L(F(z + Δ)).

    The mask m selects confident predictions. ``abs`` is the paper's, max p > threshold (almost never true early in
    contrastive training); ``correct`` also requires the largest to be the pair itself; ``rel`` is max p > threshold ·
    (the batch's largest). For the sigmoid objective, whose rows are no distributions, predictions are ``bernoulli``:
    p_bj = σ(logit) of each text j, max p is max(p_bj, 1 - p_bj), and KL is summed over b's positives and, of all
    others, the ``negatives`` with the highest clean logits.

    With GRL the identity with a reversed gradient, ``residual`` uses ``z + GRL(Δ)``: it trains the towers on changed
    pairs too, and C trains only G. ``faithful`` uses ``GRL(sg z + Δ)``: it trains what lies after the tap on changed
    pairs and on C, as the paper's code does. In addition to the clean loss the task counts ``weight`` times (paper:
    once, and both halved).

    G is an ``mlp`` over the concatenation of both sides' d features, with hidden widths
    ``range(d - s, z_dim + s, -s)``, ``s = ⌊(d - z_dim)/(layers + 1)⌋``; or ``attention`` over a pair's tokens. These
    are its two sides or, at ``tokens@K``, all its patches and words, each with a z of its own. Padding is then masked,
    unchanged and not counted, KL is a sum over tokens as over sides, and G may cost a third of the towers. G's last
    layer is linear and starts at zero, so that Δ = 0 with a gradient.

    The released code differs: its MLP's last layer ends in a ReLU, whose gradient at zero is zero, so that it never
    learns; its attention runs over the batch and not over modalities; task and augmenter are clipped together; the
    augmenter's weight decay is set and not used. Its dropout is 0.5 for the MLP and 0.1 for attention.

    Args:
        weight: the factor on all terms.
        kind: the network G.
        tap: where features are changed.
        reading: ``residual`` or ``faithful``, see above.
        adversarial: the factor on the reversed gradient that G gets from the task.
        consistency: the factor on C.
        kl: the factor on KL.
        regularizer: the factor on R.
        prediction: ``softmax``, or ``bernoulli`` for the sigmoid objective.
        negatives: how many negatives of a row count in ``bernoulli`` predictions.
        mask: which clean predictions are confident.
        threshold: how confident they must be.
        z_dim: the width of z.
        layers: of G, on each side of z.
        dropout: the drop rate in G.
        width: of the attention.
        heads: of the attention.
        hidden: the inner width of the attention's MLPs.
        learning_rate: of G's Adam.
        clip_norm: the limit of the norm of G's gradient.
    """

    def __init__(
        self,
        *,
        towers: TowerInfo,
        rngs: nnx.Rngs,
        weight: Strength = 1.0,
        kind: Literal["mlp", "attention"] = "mlp",
        tap: Tap = "pooled",
        reading: Literal["residual", "faithful"] = "residual",
        adversarial: Strength = 1e-4,
        consistency: Strength = 0.01,
        kl: Strength = 0.1,
        regularizer: Strength = 0.1,
        prediction: Literal["softmax", "bernoulli"] = "softmax",
        negatives: Annotated[int, Ge(0)] = 16,
        mask: Mask = "correct",
        threshold: Strength = 0.5,
        z_dim: Annotated[int, Ge(1)] = 8,
        layers: Annotated[int, Ge(1)] = 4,
        dropout: Annotated[float, Between(0, 0.99)] = 0.1,
        width: Annotated[int, Ge(1)] = 512,
        heads: Annotated[int, Ge(1)] = 8,
        hidden: Annotated[int, Ge(1)] = 2048,
        learning_rate: Strength = 1e-4,
        clip_norm: Annotated[float, Gt(0)] = 1.0,
    ):
        super().__init__(weight=weight)
        if reading == "faithful" and tap == "embedding":
            raise ConfigError(
                "augment.lemda.reading='faithful' with tap='embedding': changed pairs would train the logit scale "
                "alone; use reading='residual' or tap='pooled'"
            )
        towers.check_tap(tap, kinds=("tokens", "pooled", "embedding"), path="augment.lemda.tap")
        if kind == "mlp" and tap.startswith("tokens"):
            raise ConfigError(
                f"augment.lemda.tap={tap!r} with kind='mlp': an MLP takes two vectors and no sequences; use "
                "kind='attention' or tap='pooled'"
            )
        self.tap, self.reading = tap, reading
        self.prediction, self.negatives, self.mask = prediction, negatives, mask
        self.adversarial, self.consistency, self.kl, self.regularizer = adversarial, consistency, kl, regularizer
        self.threshold, self.dropout = threshold, dropout
        self.learning_rate, self.clip_norm = learning_rate, clip_norm
        widths = towers.widths(tap)
        if kind == "mlp":
            self.network: MlpVae | AttentionVae = MlpVae(widths, z_dim=z_dim, layers=layers, rngs=rngs)
        else:
            self.network = AttentionVae(
                widths, z_dim=z_dim, layers=layers, width=width, heads=heads, hidden=hidden, rngs=rngs
            )

    def augment(self, clean: Features, *, key: jax.Array, step: jax.Array) -> Augmented:
        """Changed pairs to train on, and the same to compare."""
        pairs = clean.pairs()
        sides = (pairs.image, pairs.text)
        stopped = [jax.lax.stop_gradient(x).astype(jnp.float32) for x in sides]
        if clean.image_mask is not None:
            raise ConfigError(
                f"augment.lemda.tap={self.tap!r}: its networks would read the padding of sequences; use 'pooled' or "
                "'embedding'"
            )
        valid = None if pairs.token_mask is None else pairs.token_mask.valid
        masked = {} if valid is None else {"valid": valid}
        deltas, divergence = self.network(stopped[0], stopped[1], key, dropout=self.dropout, **masked)
        factor = schedules.value_at(self.adversarial, step)
        changed = [(x + d).astype(z.dtype) for x, d, z in zip(stopped, deltas, sides, strict=True)]
        if self.reading == "faithful":
            trained = [reverse_gradient(x, factor) for x in changed]
        else:
            trained = [
                (z.astype(jnp.float32) + reverse_gradient(d, factor)).astype(z.dtype)
                for z, d in zip(sides, deltas, strict=True)
            ]
        task = View(
            image=trained[0],
            text=trained[1],
            image_source=pairs.image_source,
            text_source=pairs.text_source,
            ids=None if pairs.token_mask is None else pairs.token_mask.ids,
        )
        # C is measured on the same values, with other gradients.
        compared = dataclasses.replace(
            task,
            name="changed",
            role="consistency",
            image=changed[0],
            text=changed[1],
            projection="trained" if self.reading == "faithful" else "frozen",
        )
        squares = [jnp.sum(jnp.square(d)) for d in deltas]
        counts = [jnp.float32(x[..., 0].size) for x in stopped]
        if valid is not None:
            counts[1] = jnp.sum(valid, dtype=jnp.float32)
            stopped[1] = jnp.where(valid[..., None], stopped[1], 0.0)
        mean_square = sum(squares) / sum(n * x.shape[-1] for n, x in zip(counts, stopped, strict=True))
        relative = [
            jnp.sqrt(jax.lax.stop_gradient(square) / jnp.maximum(jnp.sum(jnp.square(x)), 1e-20))
            for square, x in zip(squares, stopped, strict=True)
        ]
        terms = {
            "kl": schedules.value_at(self.kl, step) * divergence,
            "regularizer": schedules.value_at(self.regularizer, step) * mean_square,
        }
        metrics = {"divergence": divergence, "image_residual": relative[0], "text_residual": relative[1]}
        return Augmented(views=[task, compared], terms=terms, metrics=metrics)

    def compare(
        self, clean: Features, views: Sequence[Features], *, similarity: Similarity, key: jax.Array, step: jax.Array
    ) -> tuple[Terms, Metrics]:
        """The masked divergence of the changed pairs' predictions from the clean ones'."""
        pairs, changed = clean.pairs(), views[1]
        if self.prediction == "bernoulli" and similarity.bias is None:
            raise ConfigError(
                "augment.lemda.prediction='bernoulli': needs a model with a bias; set model.init_logit_bias, as for "
                "the sigmoid objective, or use prediction='softmax'"
            )
        similarity = jax.lax.stop_gradient(similarity)
        before = jax.lax.stop_gradient(similarity.logits(pairs.image, pairs.text))
        after = similarity.logits(changed.image, changed.text)
        options: dict[str, Any] = {
            "valid": pairs.image_source.valid & pairs.text_source.valid,
            "threshold": schedules.value_at(self.threshold, step),
            "mask": self.mask,
        }
        if self.prediction == "softmax":
            by_image = softmax_consistency(after, before, **options)
            by_text = softmax_consistency(after.T, before.T, **options)
        else:
            same = shared_source(pairs.image_source, pairs.text_source)
            options["negatives"] = self.negatives
            by_image = bernoulli_consistency(after, before, positive=same, **options)
            by_text = bernoulli_consistency(after.T, before.T, positive=same.T, **options)
        value, confident = (0.5 * (one + other) for one, other in zip(by_image, by_text, strict=True))
        metrics = {"divergence_from_clean": value, "confident_fraction": confident}
        return {"consistency": schedules.value_at(self.consistency, step) * value}, metrics
