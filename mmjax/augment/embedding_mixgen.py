"""MixGen between embeddings instead of inputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.augment.common import base, schedules
from mmjax.augment.common.base import Augmented, Features, LateTap, View
from mmjax.augment.common.mixing import Targets, lerp, mixed_source
from mmjax.augment.common.schedules import Fraction, Strength
from mmjax.core.types import Provenance


class Augmentation(base.Base):
    """Makes new pairs of the first rows, with mixed embeddings in place of MixGen's inputs (arXiv:2206.08358).

    The first m = ⌊fraction · N⌋ rows become new pairs, each of its own example i and example i + m (modulo N)::

        image_i = λ image_i + (1 - λ) image_(i+m),   text_i = ½ (text_i + text_(i+m))

    With ``fraction=1`` it is example i + 1, as i + N is example i itself. The other rows stay, so that the view is a
    batch as MixGen makes it. A joined caption has no embedding of its own here; the mean of both stands for MixGen's
    concatenation. MixGen labels a new pair as its own example alone (``targets="identity"``); by provenance it is also,
    in part, example i + m. The released code mixes in place, so that with more than half of the batch later rows are
    made of mixed ones; here all sources are clean.

    Args:
        weight: the factor on this augmentation's loss.
        fraction: how much of the batch is mixed.
        mix_ratio: λ.
        tap: where features are mixed.
        targets: the labels of new pairs.
    """

    def __init__(
        self,
        *,
        weight: Strength = 1.0,
        fraction: Fraction = 0.25,
        mix_ratio: Fraction = 0.5,
        tap: LateTap = "embedding",
        targets: Targets = "provenance",
    ):
        super().__init__(weight=weight)
        self.fraction, self.mix_ratio, self.tap, self.targets = fraction, mix_ratio, tap, targets

    def augment(self, clean: Features, *, key: jax.Array, step: jax.Array) -> Augmented:
        """One view of as many pairs as there are images."""
        pairs = clean.pairs()
        rows = pairs.image.shape[0]
        count = jnp.floor(schedules.value_at(self.fraction, step) * rows).astype(jnp.int32)
        new = jnp.arange(rows)[:, None] < count

        def partner(x: jax.Array) -> jax.Array:
            return jnp.roll(x, -jnp.where(count < rows, count, 1), axis=0)

        def mix(x: jax.Array, source: Provenance, own: jax.Array) -> tuple[jax.Array, Provenance]:
            own = jnp.where(new, own, 1.0)
            mixed = mixed_source([(source, own), (jax.tree.map(partner, source), 1 - own)], self.targets)
            return lerp(x, partner(x), own), mixed

        image, image_source = mix(pairs.image, pairs.image_source, schedules.value_at(self.mix_ratio, step))
        text, text_source = mix(pairs.text, pairs.text_source, jnp.float32(0.5))
        view = View(image=image, text=text, image_source=image_source, text_source=text_source)
        return Augmented(views=[view], metrics={"mixed_fraction": count.astype(jnp.float32) / rows})
