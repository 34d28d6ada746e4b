"""A detector finds objects in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from mmjax.core.config import Between
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.backend import Box, Detector
from mmjax.generate.block import Tools


class Block(block.RecordBlock):
    """Gives records the boxes of objects that can be seen, best first; those of no area are left out.

    Args:
      model: the detector's name.
      phrases: what is looked for; if left out, ``fields["objects"]``, or the captions.
      threshold: of the detector's score.
    """

    def __init__(
        self,
        *,
        model: str = "detector",
        phrases: tuple[str, ...] = (),
        threshold: Annotated[float, Between(0, 1)] = 0.35,
    ):
        self.uses = {model: Detector}
        self._model, self._phrases, self._threshold = model, phrases, threshold

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records with their boxes."""
        detector: Detector = tools.model(self._model)
        phrases = [self._phrases or record.fields.get("objects") or record.texts for record in records]
        answers = detector.detect([tools.picture(record) for record in records], phrases, self._threshold)

        def use(record: Record, boxes: list[Box]) -> None:
            by = tools.origin(record, detector, threshold=self._threshold)
            for box in boxes:
                corners = [min(max(float(value), 0.0), 1.0) for value in box[:4]]
                if corners[0] < corners[2] and corners[1] < corners[3]:
                    record.boxes.append({"box": corners, "phrase": box.phrase, "score": float(box.score), "by": by})

        return block.ask(records, answers, use)
