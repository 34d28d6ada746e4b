"""Noise at a chosen angle on the features."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.augment.common import base, schedules
from mmjax.augment.common.base import Augmented, Features, LateTap, View
from mmjax.augment.common.schedules import Strength
from mmjax.core.sphere import unit


class Augmentation(base.Base):
    """Adds noise of a fixed relative length to one side or both: LAFITE (Zhou et al. 2022, arXiv:2111.13792).

    With noise ``ε ~ N(0, I)`` and strength ``ξ``::

        h' = h + ξ ‖h‖ ε / ‖ε‖,   so that   cos(h', h) ≥ √(1 - ξ²)   for ξ < 1

    Labels are the clean row's. LAFITE has no texts and makes a text feature of an image's in this way. Here both sides
    have features of their own, because a text made of its own image gives the pair's answer away. LAFITE's variant
    with a learned scale for each dimension is not implemented.

    Args:
        weight: the factor on this augmentation's loss.
        strength: ξ.
        sides: which side gets noise.
        tap: where.
    """

    def __init__(
        self,
        *,
        weight: Strength = 1.0,
        strength: Strength = 0.1,
        sides: Literal["both", "image", "text"] = "both",
        tap: LateTap = "embedding",
    ):
        super().__init__(weight=weight)
        self.strength, self.sides, self.tap = strength, sides, tap

    def augment(self, clean: Features, *, key: jax.Array, step: jax.Array) -> Augmented:
        """One view of as many rows as are clean."""
        strength = schedules.value_at(self.strength, step)
        keys = jax.random.split(key)
        image = perturb(clean.image, keys[0], strength) if self.sides != "text" else None
        text = perturb(clean.text, keys[1], strength) if self.sides != "image" else None
        return Augmented(views=[View(image=image, text=text)], metrics={"strength": strength})


def perturb(h: jax.Array, key: jax.Array, strength: jax.Array) -> jax.Array:
    """``h + strength · ‖h‖ · ε/‖ε‖`` for each row of h [N, D]."""
    noise = unit(jax.random.normal(key, h.shape, jnp.float32))
    rows = h.astype(jnp.float32)
    # A row of zeros has no direction to perturb; its norm's gradient there would not be a number.
    square = jnp.sum(jnp.square(rows), axis=-1, keepdims=True)
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return (rows + strength * length * noise).astype(h.dtype)
