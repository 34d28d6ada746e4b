"""Takes out captions that were there before."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Any

from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.block import Tools


class Block(block.GlobalBlock):
    """Sets the weight of captions that another record, or this one, has already to zero.

    A record that has no other caption is dropped. Texts are equal if they are so after Unicode's normalization NFKC, in
    lower case, with single spaces. The first one in the order of records stays.

    Args:
      sources: which captions; all but raw ones if left out.
    """

    decides = True

    def __init__(self, *, sources: tuple[str, ...] = ()):
        self._sources = sources

    def collect(self, record: Record) -> Any:
        """The record's id and its captions' digests."""
        rows = [number for number, _ in block.captions(record, self._sources)]
        return [record.id, [[number, digest(record.texts[number])] for number in rows]]

    def decide(self, values: Sequence[Any], tools: Tools) -> Any:
        """Numbers of the repeated captions, by record."""
        known: set[str] = set()
        repeated: dict[str, list[int]] = {}
        for name, rows in values:
            for number, value in rows:
                if value in known:
                    repeated.setdefault(name, []).append(number)
                known.add(value)
        return repeated

    def apply(self, records: Sequence[Record], decision: Any, tools: Tools) -> list[block.Result]:
        """The records without repeated captions."""
        for record in records:
            for number in decision.get(record.id, ()):
                record.captions[number]["weight"] = 0.0
            if not any(caption.get("weight", 1.0) > 0 for caption in record.captions):
                record.drop("dedup: its captions are there already")
        return list(records)


def digest(text: str) -> str:
    """Equal for texts that are the same but for case, spaces and Unicode's variants."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()[:24]
