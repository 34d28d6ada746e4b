"""LeMDA: an adversarial variational autoencoder that learns how to change the features of a pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.augment.common import base, schedules
from mmjax.augment.common.base import Augmented, Features, Similarity, Tap, Terms, TowerInfo, View, reversed_gradient
from mmjax.augment.common.divergences import Mask, bernoulli_consistency, softmax_consistency
from mmjax.augment.common.mixing import shared_source
from mmjax.augment.common.schedules import Strength
from mmjax.augment.common.vae import AttentionVae, MlpVae
from mmjax.core.config import ConfigError
from mmjax.core.types import Metrics


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
    pair itself; ``rel`` is max p > threshold · (the batch's largest). For the sigmoid objective, whose rows are no
    distributions, predictions are ``bernoulli``: p_bj = σ(logit) of each text j, max p is max(p_bj, 1 - p_bj), and
    KL is added up over b's positives and, of all others, the ``negatives`` with the highest clean logits. Readings:
    ``residual``, ``z + GRL(Δ)``, trains the towers on changed pairs too, and C only G; ``faithful``,
    ``GRL(sg z + Δ)``, trains what lies after the tap on them and on C, as the paper's code does. Beside the clean
    loss the task counts ``weight`` times (paper: once, and both halved).

    G is an ``mlp`` over both sides' concatenation of d features, with hidden widths ``range(d - s, z_dim + s, -s)``,
    ``s = ⌊(d - z_dim)/(layers + 1)⌋``, or ``attention`` between a pair's tokens: its two sides or, at ``tokens@K``,
    all its patches and words, each with a z of its own, where padding is neither seen, changed nor counted, KL is a
    sum over tokens as it is over sides, and G may cost a third of the towers. Its last layer is linear and starts at
    zero: Δ = 0, with a gradient. The released code differs: its MLP's last layer ends in a ReLU, whose gradient at
    zero is zero, so that it never learns; its attention runs over the batch and not over modalities; task and
    augmenter are clipped together; the augmenter's weight decay is set and not used. Its dropout is 0.5 for the MLP
    and 0.1 for attention.

    Options: ``kind`` of G, ``tap``, ``reading``, ``adversarial``, ``consistency``, ``kl``, ``regulariser``,
    ``prediction``, ``negatives``, ``mask``, ``threshold``, ``z_dim``, ``layers`` (on each side of z), ``dropout``; of
    attention ``width``, ``heads``, ``hidden``; of G's Adam ``learning_rate``, ``clip_norm``.
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
        regulariser: Strength = 0.1,
        prediction: Literal["softmax", "bernoulli"] = "softmax",
        negatives: int = 16,
        mask: Mask = "correct",
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
            ("negatives", negatives, 0, None),
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
        towers.check(tap, kinds=("tokens", "pooled", "embedding"), path="augment.lemda.tap")
        if kind == "mlp" and tap.startswith("tokens"):
            raise ConfigError(
                f"augment.lemda.tap={tap!r} with kind='mlp': an MLP has a width for two vectors and none for "
                "sequences; use kind='attention' or tap='pooled'"
            )
        self.tap, self.reading = tap, reading
        self.prediction, self.negatives, self.mask = prediction, negatives, mask
        self.adversarial, self.consistency, self.kl, self.regulariser = adversarial, consistency, kl, regulariser
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
        still = [jax.lax.stop_gradient(x).astype(jnp.float32) for x in (pairs.image, pairs.text)]
        valid = None if pairs.token_mask is None else pairs.token_mask.valid
        seen = {} if valid is None else {"valid": valid}
        deltas, divergence = self.network(still[0], still[1], key, dropout=self.dropout, **seen)
        factor = schedules.at(self.adversarial, step)
        sides = (pairs.image, pairs.text)
        held = [(x + d).astype(z.dtype) for x, d, z in zip(still, deltas, sides, strict=True)]
        if self.reading == "faithful":
            trained = [reversed_gradient(x, factor) for x in held]
        else:
            changed = [z.astype(jnp.float32) + reversed_gradient(d, factor) for z, d in zip(sides, deltas, strict=True)]
            trained = [x.astype(z.dtype) for x, z in zip(changed, sides, strict=True)]
        task = View(
            image=trained[0],
            text=trained[1],
            image_source=pairs.image_source,
            text_source=pairs.text_source,
            ids=None if pairs.token_mask is None else pairs.token_mask.ids,
        )
        # What C is measured on: the same values, with other gradients.
        compared = dataclasses.replace(
            task,
            name="held",
            role="consistency",
            image=held[0],
            text=held[1],
            projection="trained" if self.reading == "faithful" else "frozen",
        )
        squares = [jnp.sum(jnp.square(d)) for d in deltas]
        counts = [jnp.float32(x[..., 0].size) for x in still]
        if valid is not None:
            counts[1] = jnp.sum(valid, dtype=jnp.float32)
            still[1] = jnp.where(valid[..., None], still[1], 0.0)
        size = sum(squares) / sum(n * x.shape[-1] for n, x in zip(counts, still, strict=True))
        relative = [
            jnp.sqrt(jax.lax.stop_gradient(square) / jnp.maximum(jnp.sum(jnp.square(x)), 1e-20))
            for square, x in zip(squares, still, strict=True)
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
        self, clean: Features, views: Sequence[Features], *, similarity: Similarity, key: jax.Array, step: jax.Array
    ) -> tuple[Terms, Metrics]:
        """The masked divergence of the changed pairs' predictions from the clean ones'."""
        pairs, changed = clean.pairs(), views[1]
        if self.prediction == "bernoulli" and similarity.bias is None:
            raise ConfigError(
                "augment.lemda.prediction='bernoulli': needs a model with a bias; set model.init_logit_bias, as the "
                "sigmoid objective wants it, or use prediction='softmax'"
            )
        similarity = jax.lax.stop_gradient(similarity)
        before = jax.lax.stop_gradient(similarity.logits(pairs.image, pairs.text))
        after = similarity.logits(changed.image, changed.text)
        given: dict[str, Any] = {
            "valid": pairs.image_source.valid & pairs.text_source.valid,
            "threshold": schedules.at(self.threshold, step),
            "mask": self.mask,
        }
        if self.prediction == "softmax":
            by_image = softmax_consistency(after, before, **given)
            by_text = softmax_consistency(after.T, before.T, **given)
        else:
            same = shared_source(pairs.image_source, pairs.text_source)
            given["negatives"] = self.negatives
            by_image = bernoulli_consistency(after, before, positive=same, **given)
            by_text = bernoulli_consistency(after.T, before.T, positive=same.T, **given)
        value, kept = (0.5 * (one + other) for one, other in zip(by_image, by_text, strict=True))
        metrics = {"divergence_from_clean": value, "confident_share": kept}
        return {"consistency": schedules.at(self.consistency, step) * value}, metrics
