"""Takes out captions by their length."""

from __future__ import annotations

from typing import Annotated

from mmjax.core.config import ConfigError, Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block


class Block(block.Filter):
    """Sets the weight of captions that are too short or too long to zero; drops a record that has no others.

    Args:
      min_words: of a caption.
      max_words: of a caption; None is no limit.
      min_characters: of a caption, without spaces around it.
      sources: which captions; all but raw ones if left out.
    """

    def __init__(
        self,
        *,
        min_words: Annotated[int, Ge(0)] = 0,
        max_words: Annotated[int, Ge(1)] | None = None,
        min_characters: Annotated[int, Ge(0)] = 0,
        sources: tuple[str, ...] = (),
    ):
        if max_words is not None and max_words < min_words:
            raise ConfigError(f"max_words={max_words}: is less than min_words={min_words}; no caption could stay")
        self._min_words, self._max_words, self._min_characters = min_words, max_words, min_characters
        self._sources = sources

    def judge(self, record: Record) -> str | None:
        """Why the record is dropped."""
        return block.without(record, self._is_wrong, self._sources, reason="length: no caption of the wanted length")

    def _is_wrong(self, text: str) -> bool:
        count = len(text.split())
        too_long = self._max_words is not None and count > self._max_words
        return count < self._min_words or too_long or len(text.strip()) < self._min_characters
