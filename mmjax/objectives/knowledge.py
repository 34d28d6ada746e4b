"""Knowledge graphs: images choose true facts, and meet the mean of what is known of them."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from mmjax.core.config import Ge, Gt
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives import cs_clip, distill
from mmjax.objectives.common.pair_sums import Side, sum_pairs
from mmjax.objectives.common.places import places_of
from mmjax.objectives.common.row_softmax import row_softmax
from mmjax.objectives.common.targets import Labels, make_targets
from mmjax.objectives.common.tiles import num_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(cs_clip.Objective):
    """Facts as sentences: entities, relations, neighborhoods and a teacher (Pan et al. 2022, arXiv:2210.08901).

    The units of ``cs_clip`` are facts of a graph about what an image shows, from ``mmjax data negatives
    --method=triples``: "dog can bark" with a false tail (the paper's E2E) or a false relation (its E2R) as foil. With
    logits ``L``, image embeddings ``z``, and ``g_i`` the unit mean of the embeddings of image i's facts::

        loss = cs_clip + neighborhood_weight · g2e + teacher_weight · kd
        g2e = ½ mean_i [log Σ_j e^(scale · z_i · g_j) - scale · z_i · g_i]
            + ½ mean_i [log Σ_j e^(scale · z_j · g_i) - scale · z_i · g_i]

    over the images that have facts, and ``kd`` of ``distill``, whose teacher is by the paper the model before training
    (``data.teacher``); without one it is 0. Without facts and teacher it is ``negclip``.

    The paper encodes head, relation and tail by the towers and a further transformer over the three, and neighborhoods
    by a graph network; its code is not public. Here sentences and their mean take the place of both, so that nothing
    is added to the model. Its weights are not known to us: all are 1, but for ``unit_weight``, which is 1 here.

    For the other options see ``cs_clip`` and ``Base``.

    Args:
        unit_weight: Of the facts.
        neighborhood_weight: Of the neighborhoods.
        teacher_weight: Of the divergence from the teacher.
        teacher_temperature: 1 / the teacher's own logit scale.
    """

    unit_weight: Annotated[float, Ge(0)] = 1.0
    neighborhood_weight: Annotated[float, Ge(0)] = 1.0
    teacher_weight: Annotated[float, Ge(0)] = 1.0
    teacher_temperature: Annotated[float, Gt(0)] = 0.01

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
        sources = {"image_source": image_source, "text_source": text_source}
        loss, metrics = super().__call__(image, text, **sources, scale=scale, bias=bias)
        n, m = num_rows(image), num_rows(text)
        images, texts = self.make_labels(image_source), self.make_labels(text_source)
        columns = (text, (texts, places_of(text_source, self.captions)))
        (total,), _ = sum_pairs(self.make_sweep(n, m), _sum_facts, None, (image, images), columns)
        squared = jnp.sum(total * total, axis=1, keepdims=True)
        has_facts = squared[:, 0] > 0
        facts_mean = jnp.where(squared > 0, total / jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
        sweep, known = self.make_sweep(n, n), (images, has_facts)
        to_mean = row_softmax(sweep, _with_facts, (scale * image, known), (facts_mean, known))
        to_image = row_softmax(sweep, _with_facts, (scale * facts_mean, known), (image, known))
        neighborhood = 0.5 * (to_mean.loss + to_image.loss)
        teacher = distill.Objective(
            teacher_temperature=self.teacher_temperature,
            impl=self.impl,
            chunk=self.chunk,
            row_sharding=self.row_sharding,
        ).divergence(image, text, **sources, scale=scale)
        metrics |= {"neighborhood_loss": neighborhood, "teacher_divergence": teacher}
        return loss + self.neighborhood_weight * neighborhood + self.teacher_weight * teacher, metrics


def _sum_facts(_: None, image: Side, text: Side) -> tuple[Any, tuple[()]]:
    """The sum of the embeddings of each image's facts, which are its captions of later places."""
    labels, places = text[1]
    target = make_targets(image[1], labels)[0]
    of_image = jnp.where((target > 0) & (places > 0)[None, :], target, 0.0)
    return (jnp.einsum("nm,md->nd", of_image, text[0], precision=jax.lax.Precision.HIGHEST),), ()


def _with_facts(rows: tuple[Labels, jax.Array], columns: tuple[Labels, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The same image, among all images that have facts."""
    target, pairs = make_targets(rows[0], columns[0])
    pairs &= rows[1][:, None] & columns[1][None, :]
    return jnp.where(pairs, target, 0.0), pairs
