"""Labels that the model recognizes in sequences, such as glosses, against the examples' own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.sequences.labels import split_labels
from mmjax.evals.common.base import Base, OpenSource, open_split
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.pairs import count_unreadable
from mmjax.evals.labels.edit_distance import Edits, count_edits


class Evaluator(Base):
    """``label_error_rate``: the fewest edits from all true labels to the recognized ones, over the true ones.

    It is the word error rate of speech recognition: not a mean over examples, and it may exceed 1. Its parts are
    ``substitutions``, ``deletions`` and ``insertions``; ``sequence_accuracy`` is the fraction of examples without any.

    ``label_error_rate_other_example`` is the control: the same recognized labels against those of the next example with
    labels. ``unlabeled`` is the fraction of the examples without labels, which do not count otherwise.

    Of each frame the likeliest label is taken, or none; equal neighbors are one. It needs a model with
    ``model.recognizer``.
    """

    needs_head: ClassVar[str | None] = "labels"
    headline: ClassVar[Collection[str]] = (
        *("label_error_rate", "sequence_accuracy", "label_error_rate_other_example"),
        "num_unreadable",
    )
    over_all: ClassVar[Collection[str]] = (*headline, *Edits._fields)

    def __init__(
        self,
        open_source: OpenSource,
        *,
        split: str = "val",
        source: dict[str, Any] | None = None,
        labels: str | None = None,
    ):
        """Opens the split.

        Args:
            open_source: Opens a split of the experiment's data.
            split: The split to measure on.
            source: Options for ``open_source``.
            labels: The field of examples that has their labels: a text with words, or a list. None: ``data.labels``.
        """
        self.split = open_split(open_source, split, source)
        self.labels = labels

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        items = embedder.read(self.split.source, key=self.split.key).items
        recognized = embedder.labels(self.split.source, key=self.split.key)
        field = self.labels or embedder.label_reader.field
        pairs = [(split_labels(item.get(field)), own) for item, own in zip(items, recognized, strict=True)]
        labeled = [(true, own) for true, own in pairs if true]
        if not labeled:
            raise ConfigError(
                f"labels={field!r}: no example has labels there; name the field that has, in data.labels or "
                "eval.options.sequence_labels.labels"
            )
        true, own = zip(*labeled, strict=True)
        metrics = score_labels(true, own)
        other = score_labels([*true[1:], *true[:1]], own)
        return metrics | {
            "label_error_rate_other_example": other["label_error_rate"],
            "unlabeled": 1 - len(labeled) / len(pairs),
            "num_examples": float(len(labeled)),
            "num_unreadable": float(count_unreadable(embedder, self.split)),
        }


def score_labels(true: Sequence[Sequence[str]], recognized: Sequence[Sequence[str]]) -> dict[str, float]:
    """Error rate, its parts and the accuracy of whole sequences; for the names see ``Evaluator``."""
    edits = np.array([count_edits(*pair) for pair in zip(true, recognized, strict=True)])
    by_kind = edits.sum(axis=0) / sum(map(len, true))
    return {
        "label_error_rate": float(by_kind.sum()),
        **dict(zip(Edits._fields, by_kind.tolist(), strict=True)),
        "sequence_accuracy": float(np.mean(edits.sum(axis=1) == 0)),
    }
