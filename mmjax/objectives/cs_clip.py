"""CS-CLIP: captions and their parts, each against a false version of itself."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.config import Ge
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives.common.base import Base, TextGroups
from mmjax.objectives.common.pair_sums import Side, reduce_pairs
from mmjax.objectives.common.places import Placed, numbers_of, placed_targets, places_of, repeat_rows, row_places
from mmjax.objectives.common.row_softmax import row_softmax, weighted_mean
from mmjax.objectives.common.targets import Labels, is_negative, make_targets, own_negatives
from mmjax.objectives.common.tiles import num_rows

_Numbered = tuple[Labels, jax.Array, jax.Array]
"""The labels of rows, their places i32[N], and the numbers i32[N] of texts, or of the own text of an image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(Base):
    """NegCLIP's loss of whole captions, and one of entities and relations (Kargi et al. 2026, arXiv:2602.23906).

    The transform ``caption_units`` gives an image its caption ``p_i0`` and units ``p_ik`` of it, such as "a red hat"
    and "a man under a tree". ``H_ik`` are the foils of unit k: false versions of it; ``H_0`` are those of the captions
    of all images. With logits ``L`` without bias::

        loss = full + unit_weight · units
        full = ½ mean_i [log Σ_(t ∈ {p_j0} ∪ H_0) e^L_it - L(i, p_i0)] + ½ mean_i [log Σ_j e^L(j, p_i0) - L(i, p_i0)]
        units = ½ mean_(i, k ≥ 1) [log Σ_(t ∈ {p_jk} ∪ H_ik) e^L_it - L(i, p_ik)]
              + ½ mean_(i, k ≥ 1) [log Σ_j e^L(j, p_ik) - L(i, p_ik)]

    Units such as "a man" are those of many images. With ``mask_equal`` a text that equals an image's own text of that
    place, and an image one of whose texts equals a text, are in no normalizer; the released code takes them for
    negatives.

    Without units it is ``negclip``, and without foils CLIP's loss. ``unit_weight`` is that of the released
    configuration; the paper's own text was not available to us, so the equations are those of the released code. That
    counts a place where no image of the batch has a unit as a loss of 0, and leaves images without a unit out of the
    normalizer of texts; here means run over the units that there are, and every image is a candidate. A missing unit
    is replaced there by a second copy of another one; here it is padding.

    For the other options see ``Base``.

    Args:
        captions: How many places there are, which is ``data.captions_per_image``: the caption and three units.
        unit_weight: λ of the units.
        mask_equal: Whether equal texts of several images are no negatives.
    """

    needs_negatives: ClassVar[bool] = True

    captions: Annotated[int, Ge(1)] = 4
    unit_weight: Annotated[float, Ge(0)] = 0.5
    mask_equal: bool = True

    @property
    def text_groups(self) -> TextGroups | None:
        """The places of captions and of their false versions."""
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
        text_places, image_places = places_of(text_source, count), row_places(n, count)
        rows, numbered = repeat_rows((scale * image, images), count), (texts, text_places, numbers_of(text_source))
        sweep, own = self.make_sweep(n * count, m), jnp.full(n * count, -1, jnp.int32)
        if self.mask_equal:
            (own,), _ = reduce_pairs(
                sweep, _own_text, None, (rows[0], (rows[1], image_places)), (text, numbered), empty=-1, merge=_maximum
            )
        to_text = row_softmax(sweep, _captions_and_foils, (rows[0], (rows[1], image_places, own)), (text, numbered))
        to_image = row_softmax(
            self.make_sweep(m, n), _images, (scale * text, numbered), (image, (images, own.reshape(n, count)))
        )
        sides = ((to_text, image_places), (to_image, text_places))
        losses = [(rows.normalizer - rows.positive, rows.has_positive, place) for rows, place in sides]
        full = 0.5 * sum(weighted_mean(loss, has & (place == 0)) for loss, has, place in losses)
        units = 0.5 * sum(weighted_mean(loss, has & (place > 0)) for loss, has, place in losses)
        metrics = {
            "image_to_text_accuracy": to_text.accuracy,
            "text_to_image_accuracy": to_image.accuracy,
            "caption_loss": full,
            "unit_loss": units,
        }
        return jnp.asarray(full + self.unit_weight * units), metrics


def _own_text(_: None, rows: Side, columns: Side) -> tuple[Any, tuple[()]]:
    """The number of each row's own caption of its place; -1: it has none."""
    labels, places, numbers = columns[1]
    target = placed_targets(rows[1], (labels, places))[0]
    return (jnp.max(jnp.where(target > 0, numbers[None, :], -1), axis=1),), ()


def _captions_and_foils(rows: _Numbered, columns: _Numbered) -> tuple[jax.Array, jax.Array]:
    """Texts of the row's place: captions with the foils of all images, units with the foils of the row's own."""
    own: Placed = rows[0], rows[1]
    target, pairs = placed_targets(own, (columns[0], columns[1]))
    foils = (rows[1] == 0)[:, None] | own_negatives(rows[0], columns[0])
    equal = (target == 0) & (rows[2][:, None] == columns[2][None, :])
    return target, pairs & ~equal & (~is_negative(columns[0])[None, :] | foils)


def _images(text: _Numbered, image: tuple[Labels, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """All images but those that have an equal text."""
    target, pairs = make_targets(text[0], image[0])
    equal = jnp.zeros(pairs.shape, bool)
    for place in range(image[1].shape[1]):
        equal |= text[2][:, None] == image[1][None, :, place]
    return target, pairs & ((target > 0) | ~equal)


def _maximum(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.maximum, a, b)
