"""Mixes on the sphere, as hard negatives and as examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from mmjax.augment.common import base, schedules
from mmjax.augment.common.base import Augmented, Features, Similarity, Tap, Terms, View
from mmjax.augment.common.mixing import (
    Draw,
    Targets,
    draw_mix_ratio,
    flipped,
    mix_ratio_metrics,
    mixed_source,
    shared_source,
)
from mmjax.augment.common.schedules import Strength
from mmjax.core.config import ConfigError, Gt
from mmjax.core.numerics import EXCLUDED
from mmjax.core.sphere import slerp, unit
from mmjax.core.types import Metrics, Provenance

Mode = Literal["m2", "v", "l", "vl"]


class Augmentation(base.Base):
    """Mixes unit embeddings along the sphere: m²-mix and its one-sided relatives (Oh et al. 2023, arXiv:2203.03897).

    With unit embeddings I and T of pairs, one ``λ ~ Beta(α, α)``, a partner π (the batch reversed), and the point
    ``slerp(a, b; λ) = [sin(λθ) a + sin((1-λ)θ) b] / sin θ`` on the arc between them::

        m2:  M_j = slerp(I_j, T_j; λ),   loss = CE(I_i·T_i against I_i·M_j, j ≠ i) + CE(T_i·I_i against T_i·M_j, j ≠ i)
        v:   images slerp(I_i, I_π(i); λ) with the clean texts, target λ on i and 1 - λ on π(i)
        l:   the same for texts with the clean images
        vl:  both with the same λ

    The mixes of m2 are negatives only, so a pair's own mix does not give its answer away. ``targets="provenance"``
    leaves out negatives that share an example with the row, and labels vl by what is in it: λ² + (1 - λ)² and
    2λ(1 - λ). ``"identity"`` is the paper's labeling: every j ≠ i is a negative, and the target of vl is i and π(i)
    alike whatever λ is (there as rows of sum 2: twice this loss).

    The released code's arc cosine is not a number for equal vectors, and its OpenCLIP variant multiplies the
    negatives by the temperature instead of dividing, so that they vanish. It gives m2 a weight of 0.01 and the others
    0.05 to 0.2, with α of 0.2 to 1.

    Args:
        weight: the factor on the sum of all modes.
        modes: some of m2, v, l, vl.
        alpha: α; 0 mixes nothing.
        draw: one λ for the batch or one for each row.
        temperature: of m2; None takes the model's.
        negatives: whether m2 trains its mixes (``trained``) or stops their gradient (``stop_gradient``).
        targets: the labels, see above.
    """

    tap: Tap = "embedding"

    def __init__(
        self,
        *,
        weight: Strength = 0.01,
        modes: tuple[Mode, ...] = ("m2",),
        alpha: Strength = 1.0,
        draw: Draw = "batch",
        temperature: Annotated[float, Gt(0, "None takes the model's")] | None = None,
        negatives: Literal["trained", "stop_gradient"] = "trained",
        targets: Targets = "provenance",
    ):
        super().__init__(weight=weight)
        if not modes or len(set(modes)) < len(modes):
            raise ConfigError(f"augment.m2mix.modes={modes}: name each of m2, v, l, vl once at most, and at least one")
        self.modes, self.alpha, self.draw, self.targets = modes, alpha, draw, targets
        self.temperature, self.negatives = temperature, negatives

    def augment(self, clean: Features, *, key: jax.Array, step: jax.Array) -> Augmented:
        """One view for each of the modes v, l and vl."""
        pairs = clean.pairs()
        image, text = unit(pairs.image), unit(pairs.text)
        views: list[View] = []
        metrics: Metrics = {}
        for name, mode_key in zip(self.modes, jax.random.split(key, len(self.modes)), strict=True):
            if name == "m2":
                continue
            mix_ratio = self._draw_mix_ratio(mode_key, step, rows=image.shape[0])
            metrics |= {f"{name}_{metric}": value for metric, value in mix_ratio_metrics(mix_ratio).items()}
            image_source, text_source = self._mix_sources(pairs, mix_ratio, name)
            on_image, on_text = name != "l", name != "v"
            view = View(
                name=name,
                image=slerp(image, flipped(image), mix_ratio) if on_image else None,
                text=slerp(text, flipped(text), mix_ratio) if on_text else None,
                image_source=image_source if on_image else None,
                text_source=text_source if on_text else None,
            )
            views.append(view)
        return Augmented(views=views, metrics=metrics)

    def compare(
        self, clean: Features, views: Sequence[Features], *, similarity: Similarity, key: jax.Array, step: jax.Array
    ) -> tuple[Terms, Metrics]:
        """The loss of m2."""
        if "m2" not in self.modes:
            return {}, {}
        pairs = clean.pairs()
        mix_ratio = self._draw_mix_ratio(key, step, rows=pairs.image.shape[0])
        mixed = slerp(pairs.image, pairs.text, mix_ratio)
        if self.negatives == "stop_gradient":
            mixed = jax.lax.stop_gradient(mixed)
        if self.temperature is not None:
            similarity = Similarity(scale=jnp.float32(1 / self.temperature))
        loss = mixed_negatives_loss(pairs, mixed, similarity=similarity, targets=self.targets)
        return {"m2": loss}, mix_ratio_metrics(mix_ratio)

    def _draw_mix_ratio(self, key: jax.Array, step: jax.Array, *, rows: int) -> jax.Array:
        return draw_mix_ratio(key, schedules.value_at(self.alpha, step), rows=rows, draw=self.draw)

    def _mix_sources(self, pairs: Features, mix_ratio: jax.Array, mode: Mode) -> tuple[Provenance, Provenance]:
        """Sources by mix ratio; with the paper's vl an image counts as both its examples, a text as its first."""
        paper = self.targets == "identity" and mode == "vl"
        mix_ratios = (jnp.ones_like(mix_ratio),) * 2 if paper else (mix_ratio, 1 - mix_ratio)

        def mix(source: Provenance, targets: Targets) -> Provenance:
            return mixed_source([(source, mix_ratios[0]), (jax.tree.map(flipped, source), mix_ratios[1])], targets)

        text = mix(pairs.text_source, "identity" if paper else "provenance")
        return mix(pairs.image_source, "provenance"), text


def mixed_negatives_loss(pairs: Features, mixed: jax.Array, *, similarity: Similarity, targets: Targets) -> jax.Array:
    """``CE(I) + CE(T)``, f32[]: means over pairs of the own partner against the mixed rows of all others."""
    similarity = Similarity(scale=similarity.scale)  # a bias cancels in a softmax
    own = similarity.scale * jnp.sum(pairs.image * pairs.text, axis=-1)
    valid = pairs.image_source.valid & pairs.text_source.valid
    itself = jnp.eye(own.shape[0], dtype=bool)
    allowed = valid[:, None] & valid[None, :]
    if targets == "provenance":
        allowed &= ~shared_source(pairs.image_source, pairs.text_source)
    count = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)
    loss = jnp.zeros((), jnp.float32)
    for rows in (pairs.image, pairs.text):
        others = similarity.logits(rows, mixed)
        logits = jnp.where(itself, own[:, None], jnp.where(allowed, others, EXCLUDED))
        loss += jnp.sum(jnp.where(valid, jax.nn.logsumexp(logits, axis=1) - own, 0.0)) / count
    return loss
