"""Mixes of several examples with Dirichlet mix ratios."""

from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from mmjax.augment.common import base, schedules
from mmjax.augment.common.base import Augmented, Features, LateTap, View
from mmjax.augment.common.mixing import Draw, Targets, mixed_source
from mmjax.augment.common.schedules import Strength
from mmjax.core.config import ConfigError, Ge
from mmjax.core.types import Metrics, Provenance


class Augmentation(base.Base):
    """Mixes n examples at once (the core of PowMix, Georgiou et al. 2023, arXiv:2312.12334).

    With mix ratios ``Λ_i ~ Dirichlet(α, …, α)`` and the examples ``i + s_1, …, i + s_n`` (``s_k = ⌊k N / n⌋``, modulo
    N) of row i::

        h'_i = Σ_k Λ_ik h_(i+s_k),   sources of h'_i:  Λ_ik of example i + s_k

    on images and texts. The target of image i and text j follows from the sources of both (``Provenance``). PowMix
    mixes all of a batch into each row, and adds learned and reweighted factors; a fixed n keeps the memory of the
    labels at N·n.

    Args:
        weight: the factor on this augmentation's loss.
        sources: n.
        alpha: α; 0 leaves rows as they are.
        draw: one Λ for the batch or one for each row.
        mix_ratios: whether images and texts have the same Λ.
        tap: where features are mixed.
        targets: the labels of mixed rows.
    """

    def __init__(
        self,
        *,
        weight: Strength = 0.3,
        sources: Annotated[int, Ge(2)] = 4,
        alpha: Strength = 1.0,
        draw: Draw = "row",
        mix_ratios: Literal["same", "separate"] = "same",
        tap: LateTap = "pooled",
        targets: Targets = "provenance",
    ):
        super().__init__(weight=weight)
        self.sources, self.alpha, self.draw, self.mix_ratios = sources, alpha, draw, mix_ratios
        self.tap, self.targets = tap, targets

    def augment(self, clean: Features, *, key: jax.Array, step: jax.Array) -> Augmented:
        """One view of as many pairs as there are images."""
        pairs = clean.pairs()
        rows = pairs.image.shape[0]
        if rows < self.sources:
            raise ConfigError(f"augment.multimix.sources={self.sources}: more than the {rows} rows of a batch")
        alpha, shape = schedules.value_at(self.alpha, step), (rows, self.sources)
        image_key, text_key = jax.random.split(key)
        image = draw_mix_ratios(image_key, alpha, shape=shape, draw=self.draw)
        text = image if self.mix_ratios == "same" else draw_mix_ratios(text_key, alpha, shape=shape, draw=self.draw)
        view = View(
            image=mix_rows(pairs.image, image),
            text=mix_rows(pairs.text, text),
            image_source=self._mix_source(pairs.image_source, image),
            text_source=self._mix_source(pairs.text_source, text),
        )
        metrics: Metrics = {"largest_ratio": jnp.mean(jnp.max(image, axis=1)), "own_ratio": jnp.mean(image[:, 0])}
        return Augmented(views=[view], metrics=metrics)

    def _mix_source(self, source: Provenance, mix_ratios: jax.Array) -> Provenance:
        n = self.sources
        components = [jax.tree.map(lambda x, k=k: shift_rows(x, k, n), source) for k in range(n)]
        return mixed_source([(c, mix_ratios[:, k : k + 1]) for k, c in enumerate(components)], self.targets)


def draw_mix_ratios(key: jax.Array, alpha: jax.Array, *, shape: tuple[int, int], draw: Draw) -> jax.Array:
    """f32[rows, n] ~ Dirichlet(α, …, α); all on the row's own example where α is 0."""
    safe = jnp.where(alpha > 0, alpha, 1.0)
    one = (1, shape[1]) if draw == "batch" else shape
    # In logarithms: for small α gammas underflow, and a row of zeros has no sum to divide by.
    mix_ratios = jax.nn.softmax(jax.random.loggamma(key, safe, one, jnp.float32), axis=1)
    own = jnp.arange(shape[1]) == 0
    return jnp.broadcast_to(jnp.where(alpha > 0, mix_ratios, own.astype(jnp.float32)), shape)


def shift_rows(rows: jax.Array, k: int, n: int) -> jax.Array:
    """Each row's k-th of n sources: the batch rolled by k n-ths of its length."""
    return jnp.roll(rows, -(k * rows.shape[0] // n), axis=0)


def mix_rows(rows: jax.Array, mix_ratios: jax.Array) -> jax.Array:
    """``Σ_k Λ_ik · rows_(i+s_k)`` in float32, in the dtype of ``rows``."""
    n = mix_ratios.shape[1]
    mixed = sum(mix_ratios[:, k : k + 1] * shift_rows(rows, k, n).astype(jnp.float32) for k in range(n))
    return jnp.asarray(mixed).astype(rows.dtype)
