"""Leaves made pictures the label that a model gives them (PromptMix)."""

from __future__ import annotations

from mmjax.data.formats.generated_records import Record
from mmjax.generate import block


class Block(block.Filter):
    """Of a made picture the prompt loses its weight, and its caption of source ``qa``, a model's label, keeps its own.

    A picture whose label's cosine is below that of the prompt by more than ``margin`` is dropped: both cannot be right.

    Args:
      score: what the cosines are called.
      margin: see above.
    """

    def __init__(self, *, score: str = "clip", margin: float = 0.05):
        self._score, self._margin = score, margin

    def judge(self, record: Record) -> str | None:
        """Why the record is dropped."""
        if not record.parent_id:
            return None
        labels = [caption for caption in record.captions if caption["source"] == "qa"]
        if not labels:
            return "best_label: no label"
        prompts = [caption for caption in record.captions if caption["source"] == "edit"]
        for caption in prompts:
            caption["weight"] = 0.0
        best, prompt = (max((self._value(c) for c in several), default=-1.0) for several in (labels, prompts))
        return "best_label: the prompt fits better than the label" if best < prompt - self._margin else None

    def _value(self, caption: dict[str, object]) -> float:
        scores = caption.get("scores")
        return float(scores.get(self._score, -1.0)) if isinstance(scores, dict) else -1.0
