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
    """Sets the weight of captions that another record, or this one, has already to zero; or removes such dialogs.

    A record that has no other caption, or dialog, is dropped. Texts are equal if they are so after Unicode's
    normalization NFKC, in lower case, with single spaces. The first one in the order of records stays.

    Args:
      sources: which captions; all but raw ones if left out.
      dialogs: whether dialogs are compared, by all that is said in them, in place of captions.
    """

    def __init__(self, *, sources: tuple[str, ...] = (), dialogs: bool = False):
        self._sources, self._dialogs = sources, dialogs
        self.decides = not dialogs

    def collect(self, record: Record) -> Any:
        """The record's id and its captions' digests."""
        if self._dialogs:
            turns = [" ".join(map(" ".join, dialog["turns"])) for dialog in record.fields.get("turns", ())]
            return [record.id, [[number, digest(text)] for number, text in enumerate(turns)]]
        return [record.id, [[number, digest(c["text"])] for number, c in block.captions(record, self._sources)]]

    def decide(self, values: Sequence[Any], tools: Tools) -> Any:
        """Numbers of the repeated ones, by record."""
        known: set[str] = set()
        repeated: dict[str, list[int]] = {}
        for name, rows in values:
            for number, value in rows:
                if value in known:
                    repeated.setdefault(name, []).append(number)
                known.add(value)
        return repeated

    def apply(self, records: Sequence[Record], decision: Any, tools: Tools) -> list[block.Result]:
        """The records without what is repeated."""
        for record in records:
            repeated = decision.get(record.id, ())
            if self._dialogs:
                dialogs = record.fields.get("turns", [])
                record.fields["turns"] = [one for number, one in enumerate(dialogs) if number not in repeated]
                if repeated and not record.fields["turns"]:
                    record.drop("dedup: its dialogs are there already")
                continue
            for number in repeated:
                record.captions[number]["weight"] = 0.0
            if not any(caption.get("weight", 1.0) > 0 for caption in record.captions):
                record.drop("dedup: its captions are there already")
        return list(records)


def digest(text: str) -> str:
    """Equal for texts that are the same but for case, spaces and Unicode's variants."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()[:24]
