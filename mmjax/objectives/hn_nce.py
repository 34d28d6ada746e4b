"""HN-NCE: InfoNCE whose hardest negatives of the batch count more, or alone."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from mmjax.core.config import Between, ConfigError, Ge, Gt
from mmjax.core.numerics import EXCLUDED
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives.common.base import Base, State
from mmjax.objectives.common.pair_sums import Side, reduce_pairs, sum_pairs
from mmjax.objectives.common.row_softmax import Query, row_maxima, safe_log, weighted_mean
from mmjax.objectives.common.sweep import Sweep
from mmjax.objectives.common.targets import make_targets, similarity
from mmjax.objectives.common.tiles import num_rows

_ONLY_OF = {
    "reweight": ("beta", "schedule", "full_gap", "gap_decay", "weight_gradient"),
    "topk": ("k", "positive_limit"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(Base):
    """InfoNCE with importance weights of negatives (HN-NCE of DiHT, Radenovic et al. 2023, arXiv:2301.02280).

    With logits ``L`` without bias, targets ``S``, and ``N_i`` the n_i columns that are no target of row i::

        loss = ½ mean_i l_i(images to texts) + ½ mean_j l_j(texts to images)
        l_i  = log [α Σ_(j: S_ij > 0) e^L_ij + Σ_(j ∈ N_i) w_ij e^L_ij] - Σ_j S_ij L_ij / Σ_j S_ij
        w_ij = n_i e^(β L_ij) / Σ_(k ∈ N_i) e^(β L_ik)

    With α = 1 and β = 0 that is InfoNCE. β adapts to how well the model tells pairs apart: it is
    ``beta · clip(g / full_gap, 0, 1)``, with g the moving average of the mean gap in cosine between a row's targets and
    its hardest negative, from 0. The average is part of the training state. β multiplies logits: at a scale of 100 a β
    of 1 leaves little but the hardest negative, so use small ones.

    ``mode="topk"`` has weights of 1 for the ``k`` hardest negatives of each row and 0 for others; with all of them it
    is InfoNCE. ``positive_limit`` leaves out those above that multiple of the target's cosine, which may be false
    negatives (after NV-Retriever, arXiv:2407.15831). It is off unless set: of a model that starts from nothing it
    would leave out what it has to learn from.

    The paper has one target for each row and fixed α and β. Hard negatives, text rows of zero weight, are negatives for
    all images. For the other options see ``Base``.

    Args:
        mode: Whether negatives are weighted or chosen.
        alpha: α, the weight of targets in the normalizer.
        beta: The largest β.
        schedule: ``gap``: β follows the gap; ``constant``: it is ``beta``.
        full_gap: The gap in cosine at which β is ``beta``.
        gap_decay: Of the moving average.
        weight_gradient: Whether the weights have a gradient.
        k: How many negatives of a row ``topk`` keeps.
        positive_limit: Of ``topk``; None: off.
    """

    mode: Literal["reweight", "topk"] = "reweight"
    alpha: Annotated[float, Gt(0)] = 1.0
    beta: Annotated[float, Ge(0)] = 0.25
    schedule: Literal["gap", "constant"] = "gap"
    full_gap: Annotated[float, Gt(0)] = 0.1
    gap_decay: Annotated[float, Between(0, 1)] = 0.99
    weight_gradient: bool = True
    k: Annotated[int, Ge(1)] = 16
    positive_limit: Annotated[float, Gt(0)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for mode, names in _ONLY_OF.items():
            for name in names if mode != self.mode else ():
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise ConfigError(
                        f"objective.{name}={getattr(self, name)}: mode={self.mode!r} does not use it; leave it out, or "
                        f"set objective.mode={mode}"
                    )

    @property
    def _follows_gap(self) -> bool:
        return self.mode == "reweight" and self.schedule == "gap"

    def init_state(self) -> State:
        """A gap of 0, and so a β of 0, if β follows it."""
        return {"gap": jnp.zeros((), jnp.float32)} if self._follows_gap else {}

    def next_state(self, state: State, metrics: Metrics) -> State:
        """The moving average of the gap."""
        return {name: self.gap_decay * gap + (1 - self.gap_decay) * metrics[name] for name, gap in state.items()}

    def __call__(
        self,
        image: jax.Array,
        text: jax.Array,
        *,
        image_source: Provenance,
        text_source: Provenance,
        scale: jax.Array,
        bias: jax.Array | None = None,
        state: State | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """The loss f32[], accuracies, the gap and β; for the arguments see ``Base``."""
        beta = jnp.float32(self.beta if self.mode == "reweight" else 0.0)
        if self._follows_gap:
            beta = beta * jnp.clip((state or self.init_state())["gap"] / self.full_gap, 0.0, 1.0)
        images, texts = self.make_labels(image_source), self.make_labels(text_source)
        n, m = num_rows(image), num_rows(text)
        to_text = self._compare(self.make_sweep(n, m), (scale * image, images), (text, texts), beta)
        to_image = self._compare(self.make_sweep(m, n), (scale * text, texts), (image, images), beta)
        metrics = {
            "image_to_text_accuracy": to_text[1],
            "text_to_image_accuracy": to_image[1],
            "gap": 0.5 * jax.lax.stop_gradient((to_text[2] + to_image[2]) / scale),
            "beta": beta,
        }
        return 0.5 * (to_text[0] + to_image[0]), metrics

    def _compare(
        self, sweep: Sweep | None, rows: Query, columns: Query, beta: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The loss of one direction, its accuracy, and the gap in logits."""
        best, hardest, _ = row_maxima(sweep, make_targets, rows, columns)
        lowest, highest, top = jnp.full_like(best, EXCLUDED), jnp.full_like(best, -EXCLUDED), hardest
        if self.mode == "topk":
            if self.positive_limit is not None:
                (total, mass), _ = reduce_pairs(sweep, _positives, None, rows, columns, empty=0.0, merge=_add)
                highest = jnp.where(mass > 0, self.positive_limit * total / jnp.where(mass > 0, mass, 1.0), highest)
            choose, limited = functools.partial(_hardest, self.k), (rows[0], (rows[1], highest))
            kept, _ = reduce_pairs(sweep, choose, None, limited, columns, empty=EXCLUDED, merge=_merge_hardest)
            lowest, top = kept[:, -1], kept[:, 0]
        tile = functools.partial(_sum_tile, self.weight_gradient)
        known = rows[0], (rows[1], best, top, lowest, highest)
        (positive, mass, targets, weights, weighted, count), _ = sum_pairs(sweep, tile, beta, known, columns)
        some = count > 0
        factor = jnp.where(some, count, 1.0) / jnp.where(some, weights, 1.0)
        negatives = jnp.where(some, safe_log(weighted, top) + jnp.log(factor), EXCLUDED)
        normalizer = jnp.logaddexp(safe_log(self.alpha * targets, best), negatives)
        has_positive = mass > 0
        mean = positive / jnp.where(has_positive, mass, 1.0)
        return (
            weighted_mean(normalizer - mean, has_positive),
            weighted_mean((best >= hardest).astype(jnp.float32), has_positive),
            weighted_mean(mean - hardest, has_positive & (hardest > EXCLUDED)),
        )


def _positives(_shared: None, rows: Side, columns: Side) -> tuple[Any, tuple[()]]:
    target, _ = make_targets(rows[1], columns[1])
    return (jnp.sum(target * similarity(rows[0], columns[0]), axis=1), jnp.sum(target, axis=1)), ()


def _hardest(k: int, _: None, rows: Side, columns: Side) -> tuple[Any, tuple[()]]:
    """f32[N, k]: the largest logits of negatives that are not above the limit, in descending order."""
    labels, highest = rows[1]
    target, pairs = make_targets(labels, columns[1])
    logits = similarity(rows[0], columns[0])
    logits = jnp.where(pairs & ~(target > 0) & (logits <= highest[:, None]), logits, EXCLUDED)
    return _merge_hardest(jnp.full((logits.shape[0], k), EXCLUDED), logits), ()


def _merge_hardest(a: Any, b: Any) -> Any:
    """The largest of both, as many as ``a`` has."""
    return jax.tree.map(lambda x, y: jax.lax.top_k(jnp.concatenate([x, y], axis=1), x.shape[1])[0], a, b)


def _sum_tile(weight_gradient: bool, beta: Any, rows: Side, columns: Side) -> tuple[Any, tuple[()]]:
    """Of the targets and of the negatives between two limits, all that a row's loss needs."""
    labels, best, top, lowest, highest = rows[1]
    target, pairs = make_targets(labels, columns[1])
    logits = similarity(rows[0], columns[0])
    positive = pairs & (target > 0)
    negative = pairs & ~(target > 0) & (logits >= lowest[:, None]) & (logits <= highest[:, None])
    shifted = jnp.where(negative, logits - top[:, None], 0.0)
    weight = jnp.exp(beta * (shifted if weight_gradient else jax.lax.stop_gradient(shifted)))
    exponential = jnp.exp(jnp.where(positive, logits - best[:, None], 0.0))

    def row_sum(x: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(where, x, 0.0), axis=1)

    return (
        row_sum(target * logits, positive),
        row_sum(target, positive),
        row_sum(exponential, positive),
        row_sum(weight, negative),
        row_sum(weight * jnp.exp(shifted), negative),
        row_sum(jnp.ones_like(logits), negative),
    ), ()


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)
