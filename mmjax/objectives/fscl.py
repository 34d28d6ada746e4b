"""FSCL: rows are contrasted with rows of their own group alone, so that the group says nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.types import Metrics, Provenance
from mmjax.objectives.common.base import Base, TextGroups
from mmjax.objectives.common.pair_sums import Side, sum_pairs
from mmjax.objectives.common.row_softmax import Query, row_softmax, weighted_mean
from mmjax.objectives.common.sweep import Sweep
from mmjax.objectives.common.targets import Labels, make_targets
from mmjax.objectives.common.tiles import num_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(Base):
    """The fair supervised contrastive loss between images and texts (Park et al. 2022, arXiv:2203.16209).

    With logits ``L`` without bias, targets ``S``, the group ``g_i`` of a row, and ``N_i`` the columns of group g_i that
    are no target of row i, hard negatives (text rows of zero weight) of that group's images among them::

        loss = ½ mean_i w_i l_i(images to texts) + ½ mean_j w_j l_j(texts to images)
        l_i  = log Σ_(j ∈ N_i) e^L_ij - Σ_j S_ij L_ij / Σ_j S_ij

    Telling groups apart then gains nothing: no row is compared with another group's. As in the paper the targets are
    not in the normalizer, so that the loss may be negative. Means run over the rows that have a target, a known group
    and somebody to compare with. With ``group_norm`` each group has the same part in them, w_i being one over the
    number of these rows in its group (FSCL+'s aim; its own weights also count classes, which pairs do not have);
    without, all w_i are 1.

    The paper compares images that share a class; here a row's targets are its texts or images. The group is that of
    ``data.groups``, of all combinations where these are several. Rows of an unknown group are left out, on either side.
    Without groups, as in views that mix examples, all rows are of one. In the released code a row with nobody to
    compare with has the normalizer 1; here it is left out.

    For the other options see ``Base``.

    Args:
        group_norm: Whether each group counts the same, however many rows it has.
    """

    group_norm: bool = True

    @property
    def text_groups(self) -> TextGroups | None:
        """Texts are of their image's group."""
        return "example"

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
        """The loss f32[], and accuracies within groups; for the arguments see ``Base``."""
        images, texts = ((self.make_labels(source), _group(source)) for source in (image_source, text_source))
        n, m = num_rows(image), num_rows(text)
        sweeps = self.make_sweep(n, m), self.make_sweep(m, n)
        to_text = self._compare(sweeps[0], (scale * image, images), (text, texts))
        to_image = self._compare(sweeps[1], (scale * text, texts), (image, images))
        metrics = {
            "image_to_text_accuracy": to_text[1],
            "text_to_image_accuracy": to_image[1],
            "known_groups": jnp.mean(images[1] >= 0, dtype=jnp.float32),
        }
        return 0.5 * (to_text[0] + to_image[0]), metrics

    def _compare(self, sweep: Sweep | None, rows: Query, columns: Query) -> tuple[jax.Array, jax.Array]:
        """The loss and the accuracy of one direction."""
        compared = row_softmax(sweep, _within_group, rows, columns)
        counts = compared.has_positive & compared.has_negative
        weight = counts.astype(jnp.float32)
        if self.group_norm:
            n = num_rows(rows[0])
            known = (rows[1][1], counts)
            members, _ = sum_pairs(self.make_sweep(n, n), _members, None, ((), known), ((), known))
            weight = weight / jnp.maximum(members, 1.0)
        accuracy = (compared.best >= compared.rest).astype(jnp.float32)
        return weighted_mean(compared.normalizer - compared.positive, weight), weighted_mean(accuracy, weight)


def _group(source: Provenance) -> jax.Array:
    """i32[N]: one group for all rows that have none."""
    group = source.group
    return jax.lax.stop_gradient(jnp.zeros(source.ids.shape[0], jnp.int32) if group is None else group)


def _same_group(rows: jax.Array, columns: jax.Array) -> jax.Array:
    return (rows[:, None] == columns[None, :]) & (rows[:, None] >= 0)


def _within_group(rows: tuple[Labels, Any], columns: tuple[Labels, Any]) -> tuple[jax.Array, jax.Array]:
    """Targets of a known group, and a normalizer of the group's others."""
    target, pairs = make_targets(rows[0], columns[0])
    known = (rows[1] >= 0)[:, None] & (columns[1] >= 0)[None, :]
    return jnp.where(known, target, 0.0), pairs & ~(target > 0) & _same_group(rows[1], columns[1])


def _members(_shared: None, rows: Side, columns: Side) -> tuple[jax.Array, tuple[()]]:
    """f32[N]: how many of the rows that count are of a row's group."""
    (group, _), (other, counts) = rows[1], columns[1]
    return jnp.sum((_same_group(group, other) & counts[None, :]).astype(jnp.float32), axis=1), ()
