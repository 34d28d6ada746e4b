"""CLIC: pictures made of two, with captions in any order, and one whose words were exchanged across the two."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.config import Ge
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives.common.base import Base, TextGroups
from mmjax.objectives.common.places import Placed, placed_targets, places_of, repeat_rows, row_places
from mmjax.objectives.common.row_softmax import row_softmax, weighted_mean
from mmjax.objectives.common.targets import Labels, is_negative, make_targets, own_negatives
from mmjax.objectives.common.tiles import num_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(Base):
    """CLIP's loss by the places of captions, a choice against the false one, and equal texts in either order.

    Advancing compositional awareness in CLIP (Peleg et al. 2025, arXiv:2505.24424), for the rows of the transform
    ``clic``: ``p_i1`` and ``p_i2`` are the captions of the two halves in one order and in the other, ``p_i3`` and
    ``p_i4`` further captions of them, and ``H_i`` the hard negatives. With logits ``L`` without bias and unit rows
    ``t`` of text::

        loss = contrast_weight · cont + negative_weight · neg + uni_weight · uni
        cont = ½ mean_(i, k) [log Σ_j e^L(i, p_jk) - L(i, p_ik)] + ½ mean_(i, k) [log Σ_j e^L(j, p_ik) - L(i, p_ik)]
        neg  = mean_(i, k: H_i not empty) log [1 + Σ_(h ∈ H_i) e^(L_ih - L(i, p_ik))]
        uni  = mean_i ‖t(p_i1) - t(p_i2)‖²

    So the first captions are contrasted with first ones, the second with second ones, and false captions are in ``neg``
    alone. A batch without false captions has only ``cont``, with weight 1: CLIP's loss, as in every other step of the
    paper. A caption that an image does not have is padding. Places beyond ``captions`` count as the last one.

    The weights are the released code's (½, ½, 1). It takes exactly one false caption, and several count as a softmax
    here. It also exchanges every place of a word, and words at random where the captions have no part of speech in
    common. The paper trains the text tower alone: ``optimizer.unlocked_image_groups=0``.

    For the other options see ``Base``.

    Args:
        captions: How many places there are, which is ``data.captions_per_image``.
        contrast_weight: λ_Cont of the paper.
        negative_weight: λ_S-Neg of the paper.
        uni_weight: λ_Uni of the paper.
    """

    needs_negatives: ClassVar[bool] = True

    captions: Annotated[int, Ge(1)] = 4
    contrast_weight: Annotated[float, Ge(0)] = 0.5
    negative_weight: Annotated[float, Ge(0)] = 0.5
    uni_weight: Annotated[float, Ge(0)] = 1.0

    @property
    def text_groups(self) -> TextGroups | None:
        """The places of captions."""
        return "place"

    def __call__(
        self,
        image: jax.Array,
        text: jax.Array,
        *,
        image_source: Provenance,
        text_source: Provenance,
        scale: jax.Array,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """The loss f32[], its terms and accuracies; for the arguments see ``Base``."""
        n, m, count = num_rows(image), num_rows(text), self.captions
        images, texts = self.make_labels(image_source), self.make_labels(text_source)
        places, scaled = places_of(text_source, count), scale * image

        to_text = row_softmax(
            self.make_sweep(n * count, m),
            _captions_of_a_place,
            (repeat_rows(scaled, count), (repeat_rows(images, count), row_places(n, count))),
            (text, (texts, places)),
        )
        to_image = row_softmax(self.make_sweep(m, n), make_targets, (scale * text, texts), (image, images))
        contrast = 0.5 * (to_text.loss + to_image.loss)

        own = row_softmax(self.make_sweep(n, m), _own_negatives, (scaled, images), (text, texts))
        against, has_negative = repeat_rows((own.normalizer, own.has_negative), count)
        choices = to_text.has_positive & has_negative
        negative = weighted_mean(jax.nn.softplus(against - to_text.positive), choices)

        pairs = row_softmax(self.make_sweep(m, m), _first_and_second, (text, (texts, places)), (text, (texts, places)))
        uni = weighted_mean(2.0 - 2.0 * pairs.positive, pairs.has_positive)  # of unit rows

        weight = jnp.where(jnp.any(choices), self.contrast_weight, 1.0)
        metrics = {
            "image_to_text_accuracy": to_text.accuracy,
            "text_to_image_accuracy": to_image.accuracy,
            "contrastive_loss": contrast,
            "negative_loss": negative,
            "uni_loss": uni,
            "own_negative_accuracy": weighted_mean((to_text.positive > against).astype(jnp.float32), choices),
        }
        return weight * contrast + self.negative_weight * negative + self.uni_weight * uni, metrics


def _captions_of_a_place(rows: Placed, columns: Placed) -> tuple[jax.Array, jax.Array]:
    """Captions of the row's place."""
    target, pairs = placed_targets(rows, columns)
    return target, pairs & ~is_negative(columns[0])[None, :]


def _own_negatives(image: Labels, text: Labels) -> tuple[jax.Array, jax.Array]:
    """No targets: the normalizer is that of an image's own false captions."""
    among = own_negatives(image, text)
    return jnp.zeros(among.shape, jnp.float32), among


def _first_and_second(rows: Placed, columns: Placed) -> tuple[jax.Array, jax.Array]:
    """The second caption of a first caption's image; there is no normalizer."""
    target, pairs = make_targets(rows[0], columns[0])
    wanted = (rows[1] == 0)[:, None] & (columns[1] == 1)[None, :]
    return jnp.where(pairs & wanted, target, 0.0), jnp.zeros(pairs.shape, bool)
