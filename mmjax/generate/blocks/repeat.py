"""Takes out captions in which a word is repeated, as captioners do when they get stuck (ALIA)."""

from __future__ import annotations

import collections
from typing import Annotated

from mmjax.core.config import Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block


class Block(block.Filter):
    """Sets the weight of captions with a word more than ``most`` times to zero; drops a record that has no others.

    Args:
      most: times that a word may occur.
      sources: which captions; all but raw ones if left out.
    """

    def __init__(self, *, most: Annotated[int, Ge(1)] = 5, sources: tuple[str, ...] = ()):
        self._most, self._sources = most, sources

    def judge(self, record: Record) -> str | None:
        """Why the record is dropped."""
        return block.without(record, self._is_stuck, self._sources, reason="repeat: a word is repeated")

    def _is_stuck(self, text: str) -> bool:
        counts = collections.Counter(text.casefold().split())
        return max(counts.values(), default=0) > self._most
