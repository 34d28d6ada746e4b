"""Mixes of several examples with Dirichlet shares."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.augment.common import base, schedules
from mmjax.augment.common.base import Augmented, Features, LateTap, View
from mmjax.augment.common.mixing import Draw, Targets, mixed_source
from mmjax.augment.common.schedules import Strength
from mmjax.core.config import ConfigError
from mmjax.core.types import Metrics, Provenance


class Augmentation(base.Base):
    """Mixes of n examples at once (the core of PowMix, Georgiou et al. 2023, arXiv:2312.12334).

    With shares ``Λ_i ~ Dirichlet(α, …, α)`` and the examples ``i + s_1, …, i + s_n`` (``s_k = ⌊k N / n⌋``, round the
    batch) of row i::

        h'_i = Σ_k Λ_ik h_(i+s_k),   sources of h'_i:  Λ_ik of example i + s_k

    on images and texts, with the same shares or, anisotropically, with each side's own; the target of image i and
    text j follows from both (``Provenance``). PowMix mixes all of a batch into each row, and adds learned and
    reweighted factors; a fixed n keeps the memory of the labels at N·n.

    Options: ``sources`` n, ``alpha`` α, ``draw``, ``shares`` of the sides ``same`` or ``separate``, ``tap``,
    ``targets``.
    """

    def __init__(
        self,
        *,
        weight: Strength = 0.3,
        sources: int = 4,
        alpha: Strength = 1.0,
        draw: Draw = "row",
        shares: Literal["same", "separate"] = "same",
        tap: LateTap = "pooled",
        targets: Targets = "provenance",
    ):
        super().__init__(weight=weight)
        schedules.check(alpha, path="augment.multimix.alpha")
        if sources < 2:
            raise ConfigError(f"augment.multimix.sources={sources}: a mix has at least 2")
        self.sources, self.alpha, self.draw, self.shares = sources, alpha, draw, shares
        self.tap, self.targets = tap, targets

    def augment(self, clean: Features, *, key: jax.Array, step: jax.Array) -> Augmented:
        """One view of as many pairs as there are images."""
        pairs = clean.pairs()
        rows = pairs.image.shape[0]
        if rows < self.sources:
            raise ConfigError(f"augment.multimix.sources={self.sources}: more than the {rows} rows of a batch")
        keys = jax.random.split(key)
        image = self._shares(keys[0], step, rows=rows)
        text = image if self.shares == "same" else self._shares(keys[1], step, rows=rows)
        view = View(
            image=combined(pairs.image, image),
            text=combined(pairs.text, text),
            image_source=self._source(pairs.image_source, image),
            text_source=self._source(pairs.text_source, text),
        )
        metrics: Metrics = {"largest_share": jnp.mean(jnp.max(image, axis=1)), "own_share": jnp.mean(image[:, 0])}
        return Augmented(views=[view], metrics=metrics)

    def _shares(self, key: jax.Array, step: jax.Array, *, rows: int) -> jax.Array:
        return dirichlet(key, schedules.at(self.alpha, step), shape=(rows, self.sources), draw=self.draw)

    def _source(self, source: Provenance, shares: jax.Array) -> Provenance:
        parts = [jax.tree.map(lambda x, k=k: neighbour(x, k, self.sources), source) for k in range(self.sources)]
        return mixed_source([(part, shares[:, k : k + 1]) for k, part in enumerate(parts)], self.targets)


def dirichlet(key: jax.Array, alpha: jax.Array, *, shape: tuple[int, int], draw: Draw) -> jax.Array:
    """Shares f32[rows, n] that sum to 1 in each row; all on the row's own example where α is 0."""
    safe = jnp.where(alpha > 0, alpha, 1.0)
    one = (1, shape[1]) if draw == "batch" else shape
    # In logarithms: for small α gammas underflow, and a row of zeros has no sum to divide by.
    shares = jax.nn.softmax(jax.random.loggamma(key, safe, one, jnp.float32), axis=1)
    own = jnp.arange(shape[1]) == 0
    return jnp.broadcast_to(jnp.where(alpha > 0, shares, own.astype(jnp.float32)), shape)


def neighbour(rows: jax.Array, k: int, n: int) -> jax.Array:
    """Each row's k-th of n sources: the batch turned by k n-ths of it."""
    return jnp.roll(rows, -(k * rows.shape[0] // n), axis=0)


def combined(rows: jax.Array, shares: jax.Array) -> jax.Array:
    """``Σ_k shares_ik · rows_(i+s_k)`` in float32, in rows' dtype."""
    n = shares.shape[1]
    mixed = sum(shares[:, k : k + 1] * neighbour(rows, k, n).astype(jnp.float32) for k in range(n))
    return jnp.asarray(mixed).astype(rows.dtype)
