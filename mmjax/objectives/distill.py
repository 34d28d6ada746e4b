"""Distillation: CLIP's objective, and the similarities of a teacher as soft targets of rows and columns."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.config import Ge, Gt
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives import contrastive
from mmjax.objectives.common.row_softmax import row_softmax, weighted_mean
from mmjax.objectives.common.sweep import Sweep
from mmjax.objectives.common.targets import similarity
from mmjax.objectives.common.tiles import num_rows

_Known = tuple[jax.Array, jax.Array, jax.Array]
"""Of one side: the teacher's embeddings f32[N, E] times its scale, where it has any, and its normalizers f32[N]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(contrastive.Objective):
    """CLIP's loss and the divergence from a teacher's similarities (CLIP-KD's CRD, Yang et al. 2024, arXiv:2307.12732).

    With the student's logits ``L`` without bias, the teacher's logits ``T = cosines / teacher_temperature``, and
    ``p(X)`` the softmax of a row or column::

        loss = contrast_weight · contrastive + teacher_weight · kd
        kd = ½ mean_i Σ_j p_ij(T_i·) log [p_ij(T_i·) / p_ij(L_i·)]
           + ½ mean_j Σ_i p_ij(T_·j) log [p_ij(T_·j) / p_ij(L_·j)]

    ``data.teacher`` supplies embeddings of the teacher, whose dimensions need not be the student's. It has no gradient.
    Rows that it does not know are in no sum of ``kd``: padding, mixed rows, captions that were changed, and false
    captions. Without a teacher the loss is that of ``contrastive``.

    For the other options see ``Base``.

    Args:
        contrast_weight: Of the contrastive loss.
        teacher_weight: Of the divergence.
        teacher_temperature: 1 / the teacher's own logit scale; that of trained CLIPs is 0.01.
    """

    needs_teacher: ClassVar[bool] = True

    contrast_weight: Annotated[float, Ge(0)] = 1.0
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
        contrast, metrics = super().__call__(image, text, **sources, scale=scale, bias=bias)
        divergence = self.divergence(image, text, **sources, scale=scale)
        metrics |= {"contrastive_loss": contrast, "teacher_divergence": divergence}
        return self.contrast_weight * contrast + self.teacher_weight * divergence, metrics

    def divergence(
        self,
        image: jax.Array,
        text: jax.Array,
        *,
        image_source: Provenance,
        text_source: Provenance,
        scale: jax.Array,
    ) -> jax.Array:
        """``kd`` f32[]; 0 without a teacher."""
        if image_source.teacher is None or text_source.teacher is None:
            return jnp.zeros((), jnp.float32)
        sides = [_teacher_side(source) for source in (image_source, text_source)]
        n, m = num_rows(image), num_rows(text)
        rows = self._divergence(self.make_sweep(n, m), scale * image, text, *sides)
        columns = self._divergence(self.make_sweep(m, n), scale * text, image, *sides[::-1])
        return 0.5 * (rows + columns)

    def _divergence(
        self,
        sweep: Sweep | None,
        rows: jax.Array,
        columns: jax.Array,
        row_teacher: tuple[jax.Array, jax.Array],
        column_teacher: tuple[jax.Array, jax.Array],
    ) -> jax.Array:
        """The mean divergence f32[] of the rows that the teacher knows."""
        (own, has_own), (other, has_other) = row_teacher, column_teacher
        own = own / self.teacher_temperature
        nothing = jnp.zeros(own.shape[0], jnp.float32)
        normalizer = row_softmax(
            sweep, _known_pairs, (own, (own, has_own, nothing)), (other, (other, has_other, _zeros(other)))
        ).normalizer
        known = (own, has_own, jax.lax.stop_gradient(normalizer)), (other, has_other, _zeros(other))
        student = row_softmax(sweep, _teacher_targets, (rows, known[0]), (columns, known[1]))
        teacher = row_softmax(sweep, _teacher_targets, (own, known[0]), (other, known[1]))
        entropy = teacher.normalizer - teacher.positive
        return weighted_mean(student.normalizer - student.positive - entropy, student.has_positive)


def _teacher_side(source: Provenance) -> tuple[jax.Array, jax.Array]:
    """The teacher's embeddings, without a gradient, and bool[N]: which rows have one."""
    assert source.teacher is not None
    teacher = jax.lax.stop_gradient(source.teacher)
    return teacher, source.valid & jnp.any(teacher != 0, axis=1)


def _zeros(rows: jax.Array) -> jax.Array:
    return jnp.zeros(rows.shape[0], jnp.float32)


def _known_pairs(rows: _Known, columns: _Known) -> tuple[jax.Array, jax.Array]:
    """No targets: the normalizer is over what the teacher knows of both sides."""
    pairs = rows[1][:, None] & columns[1][None, :]
    return jnp.zeros(pairs.shape, jnp.float32), pairs


def _teacher_targets(rows: _Known, columns: _Known) -> tuple[jax.Array, jax.Array]:
    """The teacher's softmax of each row as targets."""
    pairs = rows[1][:, None] & columns[1][None, :]
    logits = jnp.where(pairs, similarity(rows[0], columns[0]) - rows[2][:, None], 0.0)
    return jnp.where(pairs, jnp.exp(logits), 0.0), pairs
