"""Captions and their rewrites are equally likely in training (LaCLIP)."""

from __future__ import annotations

from typing import Annotated

from mmjax.core.config import Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block


class Block(block.Filter):
    """Gives each rewrite the weight 1, and those that are too short leave theirs to the raw caption.

    Sampling by these weights is LaCLIP's (arXiv:2305.20088): a uniform choice among all, and the raw caption where a
    rewrite with fewer than ``min_words`` words was chosen. Several raw captions divide their weight.

    Args:
      min_words: of a rewrite.
    """

    def __init__(self, *, min_words: Annotated[int, Ge(0)] = 2):
        self._min_words = min_words

    def judge(self, record: Record) -> str | None:
        """Sets the weights; keeps all records that have a raw caption."""
        raw = [caption for caption in record.captions if caption["source"] == "raw"]
        if not raw:
            return "uniform_caption: no raw caption"
        short = 0
        for caption in record.captions:
            if caption["source"] != "raw":
                is_short = len(caption["text"].split()) < self._min_words
                caption["weight"] = 0.0 if is_short else 1.0
                short += is_short
        for caption in raw:
            caption["weight"] = (1 + short) / len(raw)
        return None
