"""Rows of tables and caption files on their way into columns: which can be used, and what is wrong with the others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmjax.config import ConfigError
from mmjax.data.sample import Reason, Unreadable

Skipped = tuple[str, Reason, str]
"""Key, reason and detail of what was left out."""

_CHUNK = 1 << 16


class Row(NamedTuple):
    """One row as it is read; ``file`` and ``line`` are where."""

    file: str
    line: int
    image: Any  # its name; or its number where the pictures are in the table
    captions: Any  # a text or several, as str or bytes
    negatives: Any = None  # false captions for the first caption: a list, or such a list as text
    label: Any = None
    fields: Sequence[Any] = ()


class Broken(NamedTuple):
    """A row that cannot be used."""

    file: str
    line: int
    reason: Reason
    detail: str


class Column:
    """Values one after the other to one Arrow array, in pieces, so that few are Python objects at a time."""

    def __init__(self, kind: pa.DataType | None = None):
        self._kind = kind
        self._values: list[Any] = []
        self._chunks: list[pa.Array] = []

    def append(self, value: Any) -> None:
        """One more; texts are checked before."""
        self._values.append(value)
        if len(self._values) == _CHUNK:
            self._flush()

    def array(self) -> pa.Array:
        """All of them; without a type given it is that of all values together."""
        if self._values or not self._chunks:
            self._flush()
        tables = [pa.table({"": chunk}) for chunk in self._chunks]
        return pa.concat_tables(tables, promote_options="permissive").column(0).combine_chunks()

    def _flush(self) -> None:
        chunk = pa.array(self._values, self._kind)
        # More than 2 GB of text need offsets of 64 bits.
        self._chunks.append(chunk.cast(pa.large_string()) if pa.types.is_string(chunk.type) else chunk)
        self._values = []


class Taken:
    """Rows taken apart into columns; what cannot be used is appended to ``skipped``.

    ``images`` and ``places`` have an entry for each row, ``captions`` and ``owner`` (the number of its row) for each
    caption, ``negatives`` the texts of lists by the number of the caption that they belong to.
    """

    def __init__(
        self,
        rows: Iterable[Row | Broken],
        skipped: list[Skipped],
        *,
        named: bool,
        labelled: bool,
        fields: Sequence[str],
    ):
        images, captions = Column(pa.large_string() if named else pa.int64()), Column(pa.large_string())
        labels, columns = Column(), [Column() for _ in fields]
        self.negatives: dict[int, str] = {}
        self.places = Places()
        counts: list[np.ndarray] = []
        recent: list[int] = []  # how many captions each row has
        done = 0
        try:
            for row in rows:
                if isinstance(row, Broken):
                    skipped.append((place(row.file, row.line), row.reason, row.detail))
                    continue
                try:
                    texts = _texts(row.captions)
                    image = _image(row.image) if named else row.image
                    negatives = None if row.negatives is None else _literal(row.negatives)
                    if labelled:
                        label = as_text(row.label)
                        if label is None or label == "" or (isinstance(label, int) and label < 0):
                            raise Unreadable("bad row", "it has no label")
                    values = [as_text(value) for value in row.fields]
                except Unreadable as error:
                    skipped.append((place(row.file, row.line), error.reason, error.detail))
                    continue
                images.append(image)
                for text in texts:
                    captions.append(text)
                if negatives is not None:
                    self.negatives[done] = negatives
                if labelled:
                    labels.append(label)
                for column, value in zip(columns, values, strict=True):
                    column.append(value)
                self.places.append(row.file, row.line)
                done += len(texts)
                recent.append(len(texts))
                if len(recent) == _CHUNK:
                    counts.append(np.array(recent, np.int64))
                    recent = []
            self.images, self.captions, self.labels = images.array(), captions.array(), labels.array()
            self.fields = dict(zip(fields, (column.array() for column in columns), strict=True))
        except (pa.ArrowException, OverflowError) as error:
            reason = " ".join(str(error).split())[:100]
            raise ConfigError(f"columns={tuple(fields)!r}: the values of one are of several types ({reason})") from None
        counts.append(np.array(recent, np.int64))
        self.owner = np.repeat(np.arange(len(self.images)), np.concatenate(counts))


class Places:
    """File and line of each row."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._lines = Column(pa.int64())
        self._which = Column(pa.int32())
        self._arrays: tuple[pa.Array, pa.Array] | None = None

    def append(self, file: str, line: int) -> None:
        """One more row."""
        self._which.append(self._files.setdefault(file, len(self._files)))
        self._lines.append(line)

    def text(self, row: int) -> str:
        """What to look for."""
        if self._arrays is None:
            self._arrays = self._which.array(), self._lines.array()
        which, lines = self._arrays
        return place(list(self._files)[which[row].as_py()], lines[row].as_py())


def place(file: str, line: int) -> str:
    """What to look for: the file's name and the line or row in it."""
    return f"{file.rpartition('/')[2]}:{line}"


def as_text(value: Any) -> Any:
    """Bytes as text, other values as they are; what is no UTF-8 is refused."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Unreadable("caption is not UTF-8", str(error)) from None
    return value


def _image(value: Any) -> str:
    try:
        name = as_text(value)
    except Unreadable as error:
        raise Unreadable("bad row", f"the image's name is not UTF-8: {error.detail}") from None
    if not isinstance(name, str) or not (name := name.strip()):
        raise Unreadable("bad row", f"no image is named but {value!r:.60}")
    return name


def _texts(value: Any) -> list[str]:
    """The texts that are not blank."""
    if isinstance(value, str) and value.isascii() and value and not value.isspace():
        return [value]  # nearly all of them
    found: list[str] = []
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(item, (list, tuple)):
            found += _texts(item) if any(item) else []
            continue
        text = as_text(item)
        if text is None:
            continue
        if not isinstance(text, str):
            raise Unreadable("bad row", f"a caption is of type {type(text).__name__}")
        if text and not text.isspace():
            found.append(text)
    if not found:
        raise Unreadable("no caption", "all are empty")
    return found


def _literal(value: Any) -> str | None:
    if isinstance(value, (list, tuple)):
        return json.dumps([as_text(item) for item in value], ensure_ascii=False) if len(value) else None
    value = as_text(value)
    if value is not None and not isinstance(value, str):
        raise Unreadable("bad row", f"negatives are of type {type(value).__name__}")
    return value if value and not value.isspace() else None
