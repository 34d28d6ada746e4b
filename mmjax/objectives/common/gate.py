"""A gate in the training step: the better the model, the fewer of the worst-scored pairs it trains on."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from mmjax.core.config import Between, ConfigError
from mmjax.core.numerics import EXCLUDED
from mmjax.core.types import Batch, Metrics, Provenance
from mmjax.objectives.common.base import Base, State
from mmjax.objectives.common.row_softmax import row_maxima, weighted_mean
from mmjax.objectives.common.targets import make_targets
from mmjax.objectives.common.tiles import num_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateConfig:
    """SLUMA's selection by learning status, as a section ``gate`` beside any objective.

    With ``q_i`` the quantile of example i's score among the scores of the training split (the best has 1), and ``p_t``
    the fraction of the images that step t keeps whose own caption is the nearest in the batch::

        keep_i(t) = [q_i >= strictness · m_(t-1)]        m_t = decay · m_(t-1) + (1 - decay) · p_t,  m_0 = 0

    The first step keeps everything. A pair that is not kept becomes padding: it has no loss of its own, and is no
    negative of others. Examples without a score are at quantile 0. A step that keeps nothing has a loss of zero and
    leaves m as it is. ``m`` is in the checkpoints.

    This is a reconstruction: SLUMA (ACM MM 2024) was read in a summary that leaves the formula out, and both defaults
    are ours.

    Args:
        scores: a table (parquet, csv, tsv, jsonl) by ``key`` or ``id``, as ``mmjax score`` writes it; None: the score
            is a column of the source.
        score: the column.
        decay: of the moving average of the accuracy.
        strictness: the quantile below which a model that is always right leaves pairs out.
        left_out: what becomes of a pair that is not kept: ``padding``, or, for objectives that learn from such
            (``sluma``), an image without a caption.
    """

    scores: str | None = None
    score: str = "score"
    decay: Annotated[float, Between(0, 1)] = 0.9
    strictness: Annotated[float, Between(0, 1)] = 0.7
    left_out: Literal["padding", "unlabeled"] = "padding"


class Gate:
    """The gate as functions of a batch and of a state that the step carries on, ``{"performance": m f32[]}``."""

    def __init__(self, config: GateConfig, objective: Base):
        """``objective`` is what the gate stands before."""
        self._config, self._objective = config, objective
        if config.left_out == "unlabeled" and not objective.uses_unlabeled:
            raise ConfigError(
                "gate.left_out='unlabeled': the objective does not learn from images without a caption; use "
                "objective.name=sluma, or left_out='padding'"
            )

    def init_state(self) -> State:
        """Nothing is learned yet."""
        return {"performance": jnp.zeros((), jnp.float32)}

    def apply(self, batch: Batch, state: State) -> tuple[Batch, Metrics]:
        """The batch with the pairs that are left out as padding, and the threshold and the fraction kept."""
        assert batch.quantile is not None, "batches come with quantiles if the experiment has a gate"
        threshold = self._config.strictness * state["performance"]
        kept = batch.quantile >= threshold
        texts = jnp.repeat(kept, num_rows(batch.tokens) // num_rows(kept))  # an image's texts follow one another
        unlabeled = self._config.left_out == "unlabeled"
        gated = dataclasses.replace(
            batch,
            image_source=_leave_out(batch.image_source, kept, keep_ids=unlabeled),
            text_source=_leave_out(batch.text_source, texts),
        )
        return gated, {"gate/threshold": threshold, "gate/kept": jnp.mean(kept, dtype=jnp.float32)}

    def measure(
        self, image: jax.Array, text: jax.Array, *, image_source: Provenance, text_source: Provenance
    ) -> Metrics:
        """The accuracy from image to text of the pairs that are kept, whatever the objective measures."""
        sweep = self._objective.make_sweep(num_rows(image), num_rows(text))
        rows, columns = self._objective.make_labels(image_source), self._objective.make_labels(text_source)
        best, rest, _ = row_maxima(sweep, make_targets, (image, rows), (text, columns))
        right = (best >= rest).astype(jnp.float32)
        return {"gate/accuracy": weighted_mean(right, best > EXCLUDED)}

    def next_state(self, state: State, metrics: Metrics) -> State:
        """The moving average after a step, of the metrics of ``apply`` and ``measure``."""
        old, decay = state["performance"], self._config.decay
        new = decay * old + (1 - decay) * metrics["gate/accuracy"]
        return {"performance": jnp.where(metrics["gate/kept"] > 0, new, old)}


def _leave_out(source: Provenance, kept: jax.Array, *, keep_ids: bool = False) -> Provenance:
    """Rows that are not kept as padding; with ``keep_ids`` as rows of zero weight."""
    column = kept[:, None]
    ids = source.ids if keep_ids else jnp.where(column, source.ids, -1)
    return dataclasses.replace(source, ids=ids, weight=jnp.where(column, source.weight, 0.0))
