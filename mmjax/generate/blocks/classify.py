"""A classifier judges pictures by the classes of the data (ALIA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.backend import Labeler
from mmjax.generate.block import Estimate, Tools


class Block(block.GlobalBlock):
    """Puts the prediction into ``fields``: ``predicted``, ``confidence`` (its probability), ``self_confidence``.

    The last is the probability of the record's own class, ``fields["class_name"]``. The class that is predicted is also
    a caption of source ``qa`` if there is a ``caption``.

    Args:
      model: the labeler's name.
      classes: their names; if left out, all that occur in the data.
      caption: text with ``{}`` for the predicted class, which becomes a caption of made pictures; none if left out.
    """

    def __init__(self, *, model: str = "labeler", classes: tuple[str, ...] = (), caption: str | None = None):
        self.uses, self.needs = {model: Labeler}, () if classes else ("class_name",)
        self._model, self._classes, self._caption = model, classes, caption

    def collect(self, record: Record) -> Any:
        """The class."""
        return record.fields.get("class_name")

    def decide(self, values: Sequence[Any], tools: Tools) -> Any:
        """The classes, sorted."""
        classes = list(self._classes) or sorted(set(values))
        if not classes:
            raise ConfigError("classes=(): the data has no classes; name them, or use data with labels")
        return classes

    def apply(self, records: Sequence[Record], decision: Any, tools: Tools) -> list[block.Result]:
        """The records with predictions."""
        labeler: Labeler = tools.model(self._model)
        answers = labeler.probabilities([tools.picture(record) for record in records], decision)

        def use(record: Record, probabilities: np.ndarray) -> None:
            best = int(np.argmax(probabilities))
            record.fields |= {"predicted": decision[best], "confidence": float(probabilities[best])}
            own = record.fields.get("class_name")
            if own in decision:
                record.fields["self_confidence"] = float(probabilities[decision.index(own)])
            by = tools.origin(record, labeler)
            if self._caption is not None and record.parent_id:
                text = self._caption.replace("{}", decision[best])
                record.captions.append({"text": text, "source": "qa", "weight": 1.0, "by": by})

        return block.ask(records, answers, use)

    def estimate(self, records: int) -> Estimate:
        """A request a record."""
        return Estimate({self._model: records}, records)
