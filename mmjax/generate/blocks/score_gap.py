"""Takes out negatives that fit their picture better than the truth (BiAug)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.block import Tools


class Block(block.RecordBlock):
    """Removes negatives whose cosine is not below that of their true caption, or the caption too.

    Of a made picture that has none left, nobody knows what it shows: it is dropped, as is one whose scores are missing.

    Args:
      score: what the cosines are called.
      margin: by which the true caption must be better.
      doubtful: whether a made caption that is not better than its negative loses its weight, because it may be wrong
        itself; a record that has no other caption is dropped.
    """

    def __init__(self, *, score: str = "clip", margin: float = 0.0, doubtful: bool = False):
        self._score, self._margin, self._doubtful = score, margin, doubtful

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records with the negatives that stay."""
        for record in records:
            had = bool(record.negatives)
            is_worse = [
                self._value(record.captions[negative["of"]]) - self._value(negative) > self._margin
                for negative in record.negatives
            ]
            for negative, worse in zip(record.negatives, is_worse, strict=True):
                caption = record.captions[negative["of"]]
                if self._doubtful and not worse and caption["source"] != "raw":
                    caption["weight"] = 0.0
            if not any(caption.get("weight", 1.0) > 0 for caption in record.captions):
                record.drop("score_gap: no caption fits better than its negative")
            record.negatives = [n for n, worse in zip(record.negatives, is_worse, strict=True) if worse]
            if had and not record.negatives and record.parent_id:
                record.drop("score_gap: the picture fits the caption that it was made from better than its own")
        return list(records)

    def _value(self, scored: Mapping[str, Any]) -> float:
        value = scored.get("scores", {}).get(self._score)
        return float("nan") if value is None else float(value)
