"""Takes out made pictures that show nothing of their class (ALIA)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.backend import Scorer
from mmjax.generate.block import Tools


class Block(block.RecordBlock):
    """Keeps a made picture only if, of all prompts, the one with the highest cosine is one of its class.

    Args:
      positives: prompts with ``{}`` for the class.
      negatives: prompts of what a failed picture shows.
      model: the scorer's name.
      field: which of the record's ``fields`` names the class: ``class_name``, or ``predicted`` of a stage ``classify``.
      originals: whether the data's own pictures are judged too.
    """

    def __init__(
        self,
        *,
        positives: tuple[str, ...] = ("a photo of a {}",),
        negatives: tuple[str, ...] = (
            "a picture of something", "abstract shapes", "a plain background", "a blurred picture", "an empty scene",
        ),
        model: str = "scorer",
        field: str = "class_name",
        originals: bool = False,
    ):  # fmt: skip
        if not positives or not negatives:
            raise ConfigError("positives=(): prompts of the class and others are compared; name both")
        self.uses, self._has_blank = {model: Scorer}, "{}" in "".join(positives)
        self.needs = ("class_name",) if field == "class_name" and self._has_blank else ()
        self._positives, self._negatives, self._model, self._originals = positives, negatives, model, originals
        self._field = field

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records, some of them dropped."""
        scorer: Scorer = tools.model(self._model)
        judged = [record for record in records if record.parent_id or self._originals]
        for record in judged:
            if self._has_blank and self._field not in record.fields:
                record.drop("semantic: no class")
        judged = [record for record in judged if record.keep]
        names = [str(record.fields.get(self._field, "")) for record in judged]
        texts = [[*(text.replace("{}", name) for text in self._positives), *self._negatives] for name in names]
        answers = scorer.score([tools.picture(record) for record in judged], texts)

        def use(record: Record, cosines: np.ndarray) -> None:
            tools.origin(record, scorer)
            if not is_positive(cosines, len(self._positives)):
                record.drop("semantic: another prompt fits better than the class")

        results = dict(zip((r.id for r in judged), block.ask(judged, answers, use), strict=True))
        return [results.get(record.id, record) for record in records]


def is_positive(cosines: np.ndarray, positives: int) -> bool:
    """Whether the highest cosine is one of the first ``positives``; NaN is not."""
    return bool(np.isfinite(cosines).all()) and int(np.argmax(cosines)) < positives
