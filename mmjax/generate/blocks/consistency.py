"""Takes out captions whose marked names are not those that a tagger finds (GMDA)."""

from __future__ import annotations

from collections.abc import Sequence

from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.backend import EntityTagger, Failure
from mmjax.generate.block import Tools


class Block(block.RecordBlock):
    """Removes captions with ``entities`` that differ from the tagger's; a record that has no others is dropped.

    Args:
      model: the tagger's name; GMDA's is trained on the real data.
    """

    def __init__(self, *, model: str = "tagger"):
        self.uses = {model: EntityTagger}
        self._model = model

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records with the captions that stay."""
        tagger: EntityTagger = tools.model(self._model)
        marked = [(row, c) for row, record in enumerate(records) for c in record.captions if "entities" in c]
        answers = tagger.entities([caption["text"] for _, caption in marked])
        failures: dict[int, Failure] = {}
        for (row, caption), answer in zip(marked, answers, strict=True):
            if isinstance(answer, Failure):
                failures[row] = answer
            elif sorted(tuple(entity) for entity in caption["entities"]) != sorted(tuple(e) for e in answer):
                caption["weight"] = 0.0
        for row, record in enumerate(records):
            if any(r == row for r, _ in marked) and not block.captions(record, ("caption",)):
                record.drop("consistency: the marked names are not those that the tagger finds")
        return [failures.get(row, record) for row, record in enumerate(records)]
