"""A scorer compares each picture with its texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.backend import Scorer
from mmjax.generate.block import Tools


class Block(block.RecordBlock):
    """Gives each caption and each negative the cosine with the picture, and the record the best one of its captions.

    Args:
      model: the scorer's name.
      score: what the cosines are called.
    """

    def __init__(self, *, model: str = "scorer", score: str = "clip"):
        self.uses = {model: Scorer}
        self._model, self._name = model, score

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records with their scores."""
        scorer: Scorer = tools.model(self._model)
        texts = [record.texts + [negative["text"] for negative in record.negatives] for record in records]
        answers = scorer.score([tools.picture(record) for record in records], texts)

        def use(record: Record, cosines: np.ndarray) -> None:
            by = tools.origin(record, scorer)
            for scored, cosine in zip([*record.captions, *record.negatives], cosines, strict=True):
                scored.setdefault("scores", {})[self._name] = float(cosine)
                scored["scored_by"] = by
            if record.captions:
                record.scores[self._name] = max(caption["scores"][self._name] for caption in record.captions)

        return block.ask(records, answers, use)
