"""The records of ``mmjax generate``: content in ArrayRecord files, what was decided about it in a table beside each.

``FOLDER/records-00000-of-00004.array_record`` has a ``Record`` for each example that was made, a msgpack map;
``….parquet`` has a row for each with what filters and mixers decide: whether it is kept, why not, its scores, and the
weights of its captions. A filter rewrites the table alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa

KIND = "records"
PLAN = "generate.json"
SCORE = "score_"  # begins the names of the table's columns of scores
_FIXED = {
    "id": pa.string(),
    "parent_id": pa.string(),
    "key": pa.string(),
    "split": pa.string(),
    "keep": pa.bool_(),
    "reason": pa.string(),
    "sources": pa.list_(pa.string()),
    "weights": pa.list_(pa.float64()),
    "negatives": pa.int32(),
}


@dataclasses.dataclass(kw_only=True)
class Record:
    """One example: a picture with texts, where all of it comes from, and what was decided about it.

    What models made has ``by``, the number of its entry in ``provenance``.

    Attributes:
      id: of this record; a child's is its parent's with a number, as ``17.0``.
      parent_id: of the record whose picture this one's was made from; empty for those of the source.
      key: of the source's example, for messages.
      split: of the source; children have their parent's.
      index: of the source's example.
      image: the encoded picture; None while it is the source's.
      size: height and width.
      captions: ``{"text", "source", "weight", "scores", "by"}``; ``source`` is raw, caption, rewrite, qa, edit or
        detail, ``weight`` that with which training samples it.
      negatives: false captions ``{"text", "kind", "of", "scores", "by"}``; ``of`` is the number of the true caption.
      neg_image_ids: records whose pictures show what is false here.
      boxes: ``{"box": [x1, y1, x2, y2], "phrase", "score", "by"}`` in fractions of the picture.
      qa: ``{"q", "a", ...}``: questions, answers, and what was made of them, or turns of a conversation.
      scores: numbers by name.
      keep: False for what a filter, a mixer or an error took out.
      reason: why it is not kept.
      provenance: ``{"block", "model", "revision", "prompt_sha", "seed", "params"}``.
      fields: the further fields of the source's example.
      unknown: what a newer version wrote; it stays as it is.
    """

    id: str
    parent_id: str = ""
    key: str = ""
    split: str = "train"
    index: int = 0
    image: bytes | None = None
    size: tuple[int, int] = (0, 0)
    captions: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    negatives: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    neg_image_ids: list[str] = dataclasses.field(default_factory=list)
    boxes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    qa: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    keep: bool = True
    reason: str = ""
    provenance: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    unknown: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """The captions' texts."""
        return [caption["text"] for caption in self.captions]

    def drop(self, reason: str) -> None:
        """Takes it out, unless something did so before."""
        if self.keep:
            self.keep, self.reason = False, " ".join(reason.split())[:300]

    def to_bytes(self) -> bytes:
        """As stored; equal records have equal bytes."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values |= values.pop("unknown")
        return msgpack.packb(dict(sorted(values.items())))

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """The record that ``to_bytes`` stored; raises ValueError for anything else."""
        try:
            values = msgpack.unpackb(data)
            known = {field.name for field in dataclasses.fields(cls)} - {"unknown"}
            record = cls(**{name: values[name] for name in values.keys() & known})
            record.unknown = {name: values[name] for name in values.keys() - known}
            record.size = (int(record.size[0]), int(record.size[1]))
        except (ValueError, TypeError, AttributeError, IndexError, msgpack.UnpackException) as error:
            raise ValueError(f"not a record of mmjax generate ({type(error).__name__}: {error})") from None
        return record

    def decide(self, row: Mapping[str, Any]) -> None:
        """Takes what the table's ``row`` says in place of its own."""
        self.keep, self.reason = bool(row["keep"]), row["reason"]
        self.scores = {
            name.removeprefix(SCORE): value
            for name, value in row.items()
            if name.startswith(SCORE) and value is not None
        }
        for caption, weight in zip(self.captions, row["weights"], strict=True):
            caption["weight"] = weight


def table_of(records: Sequence[Record]) -> pa.Table:
    """The side table: a row for each record, in order."""
    rows = [
        {
            "id": record.id,
            "parent_id": record.parent_id,
            "key": record.key,
            "split": record.split,
            "keep": record.keep,
            "reason": record.reason,
            "sources": [caption["source"] for caption in record.captions],
            "weights": [float(caption.get("weight", 1.0)) for caption in record.captions],
            "negatives": len(record.negatives),
        }
        for record in records
    ]
    table = pa.Table.from_pylist(rows, pa.schema(_FIXED))
    for name in sorted({name for record in records for name in record.scores}):
        values = [record.scores.get(name) for record in records]
        table = table.append_column(f"{SCORE}{name}", pa.array(values, pa.float64()))
    return table


def jsonable(value: Any) -> Any:
    """``value`` of plain numbers, texts, lists and maps; raises TypeError for what is none of these."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, (str, int, float, bytes)):
        return value
    if isinstance(value, Mapping):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(inner) for inner in value]
    raise TypeError(type(value).__name__)
