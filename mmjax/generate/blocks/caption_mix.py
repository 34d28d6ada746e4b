"""Raw or synthetic captions by their cosines ("Improving Multimodal Datasets with Image Captioning")."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from mmjax.core.config import Between
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.block import Tools
from mmjax.generate.quantiles import top_threshold


class Block(block.GlobalBlock):
    """Keeps a record's raw captions, its synthetic ones, or drops it (Nguyen et al. 2023, arXiv:2307.10350).

    With the best cosines s_r of its raw and s_s of its synthetic captions, and τ = s_r at the top ``fraction``::

        raw if s_r ≥ τ;  else synthetic if s_s ≥ τ, or always unless ``filtered``;  else dropped

    The others' weights become zero. A record without such a caption, or whose cosine is NaN, is as one below τ.
    Captions whose weight is zero already, because a filter took them out, are as none.

    Args:
      fraction: of the records whose raw captions are kept; 1 keeps raw ones only, 0 synthetic ones only.
      filtered: whether synthetic captions must reach τ too.
      best: whether only the best of the captions that stay has a weight.
      score: the cosines' name.
      compat: ``datacomp`` keeps one more, and ties, as the released code of DataComp does; else exactly as many.
    """

    decides = True

    def __init__(
        self,
        *,
        fraction: Annotated[float, Between(0, 1)] = 0.3,
        filtered: bool = True,
        best: bool = True,
        score: str = "clip",
        compat: Literal["exact", "datacomp"] = "exact",
    ):
        self._fraction, self._filtered, self._best_only = fraction, filtered, best
        self._score, self._compat = score, compat

    def collect(self, record: Record) -> Any:
        """Id and s_r."""
        return [record.id, self._best(record, raw=True)]

    def decide(self, values: Sequence[Any], tools: Tools) -> Any:
        """τ and, of the records that score exactly τ, those that are kept."""
        return top_threshold(values, self._fraction, compat=self._compat)

    def apply(self, records: Sequence[Record], decision: Any, tools: Tools) -> list[block.Result]:
        """The records with the weights of their captions, or dropped."""
        return [self._apply(record, decision) for record in records]

    def _apply(self, record: Record, decision: Any) -> Record:
        threshold = math.inf if decision["threshold"] is None else decision["threshold"]
        raw, synthetic = self._best(record, raw=True), self._best(record, raw=False)
        takes_raw = raw > threshold or (raw == threshold and record.id not in decision["left_out"])
        if not takes_raw:
            passes = synthetic >= threshold if math.isfinite(threshold) else not math.isinf(synthetic)
            if self._fraction == 1:
                passes = False
            elif not self._filtered or self._fraction == 0:
                passes = not math.isinf(synthetic)
            if not passes:
                record.drop("caption_mix: neither caption scores enough")
                return record
        chosen = [number for number, c in enumerate(record.captions) if _has_weight(c, raw=takes_raw)]
        if self._best_only:
            chosen = sorted(chosen, key=lambda number: self._cosine(record.captions[number]))[-1:]
        for number, caption in enumerate(record.captions):
            if number not in chosen:
                caption["weight"] = 0.0
        record.scores["mix"] = raw if takes_raw else synthetic
        return record

    def _best(self, record: Record, *, raw: bool) -> float:
        cosines = [self._cosine(caption) for caption in record.captions if _has_weight(caption, raw=raw)]
        return max(cosines, default=-math.inf)

    def _cosine(self, caption: Mapping[str, Any]) -> float:
        cosine = caption.get("scores", {}).get(self._score, math.nan)
        return -math.inf if math.isnan(cosine) else cosine


def _has_weight(caption: Mapping[str, Any], *, raw: bool) -> bool:
    return (caption["source"] == "raw") == raw and caption.get("weight", 1.0) > 0
