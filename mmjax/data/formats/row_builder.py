"""Rows of tables and caption files on their way into columns: which can be used, and what is wrong with the others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmjax.core.config import ConfigError
from mmjax.data.sample import Reason, Unreadable
from mmjax.data.source import UnreadableEntry

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


class BadRow(NamedTuple):
    """A row that cannot be used."""

    file: str
    line: int
    reason: Reason
    detail: str


class Column:
    """Values piece by piece to one Arrow array, so that few are Python objects at a time."""

    def __init__(self, kind: pa.DataType | None = None):
        self._kind = kind
        self._chunks: list[pa.Array] = []

    def extend(self, values: Sequence[Any]) -> None:
        """Some more; texts are checked before."""
        chunk = pa.array(values, self._kind)
        # More than 2 GB of text need offsets of 64 bits.
        self._chunks.append(chunk.cast(pa.large_string()) if pa.types.is_string(chunk.type) else chunk)

    def array(self) -> pa.Array:
        """All of them; without a type given it is that of all values together."""
        tables = [pa.table({"": chunk}) for chunk in self._chunks or [pa.array([], self._kind)]]
        self._chunks = []
        return pa.concat_tables(tables, promote_options="permissive").column(0).combine_chunks()


class RowBuilder:
    """Rows taken apart into columns; what cannot be used is appended to ``unreadable``.

    ``images`` has an entry for each row, ``captions`` and ``owner`` (the number of its row) for each caption,
    ``negatives`` the texts of lists by the number of the caption that they belong to.
    """

    def __init__(
        self,
        rows: Iterable[Row | BadRow],
        unreadable: list[UnreadableEntry],
        *,
        named: bool,
        labelled: bool,
        fields: Sequence[str],
    ):
        self._images = Column(pa.large_string() if named else pa.int64())
        self._captions, self._counts = Column(pa.large_string()), Column(pa.int64())
        self._files, self._lines = Column(pa.int32()), Column(pa.int64())
        self._labels, self._fields = Column(), [Column() for _ in fields]
        self._names: dict[str, int] = {}
        self.negatives: dict[int, str] = {}
        piece = _Piece()
        done = 0
        try:
            for row in rows:
                if isinstance(row, BadRow):
                    unreadable.append((place(row.file, row.line), row.reason, row.detail))
                    continue
                try:
                    texts = _texts(row.captions)
                    image = _image(row.image) if named else row.image
                    negatives = None if row.negatives is None else _literal(row.negatives)
                    label = _label(row.label) if labelled else None
                    values = [as_text(value) for value in row.fields] if fields else ()
                except Unreadable as error:
                    unreadable.append((place(row.file, row.line), error.reason, error.detail))
                    continue
                if negatives is not None:
                    self.negatives[done] = negatives
                done += len(texts)
                piece.images.append(image)
                piece.captions += texts
                piece.counts.append(len(texts))
                piece.labels.append(label)
                piece.fields.append(values)
                piece.files.append(self._names.setdefault(row.file, len(self._names)))
                piece.lines.append(row.line)
                if len(piece.images) == _CHUNK:
                    self._store(piece)
                    piece = _Piece()
            self._store(piece)
            self.images, self.captions, self.labels = (c.array() for c in (self._images, self._captions, self._labels))
            self.fields = dict(zip(fields, (column.array() for column in self._fields), strict=True))
        except (pa.ArrowException, OverflowError) as error:
            reason = " ".join(str(error).split())[:100]
            raise ConfigError(f"columns={tuple(fields)!r}: the values of one are of several types ({reason})") from None
        self.owner = np.repeat(np.arange(len(self.images)), self._counts.array().to_numpy())
        self._places = self._files.array(), self._lines.array()

    def place(self, row: int) -> str:
        """Where a row was."""
        files, lines = self._places
        return place(list(self._names)[files[row].as_py()], lines[row].as_py())

    def _store(self, piece: _Piece) -> None:
        self._images.extend(piece.images)
        self._captions.extend(piece.captions)
        self._counts.extend(piece.counts)
        self._files.extend(piece.files)
        self._lines.extend(piece.lines)
        self._labels.extend(piece.labels)
        for number, column in enumerate(self._fields):
            column.extend([values[number] for values in piece.fields])


class _Piece:
    """Values of some rows."""

    def __init__(self) -> None:
        self.images: list[Any] = []
        self.captions: list[str] = []
        self.counts: list[int] = []
        self.labels: list[Any] = []
        self.fields: list[Sequence[Any]] = []
        self.files: list[int] = []
        self.lines: list[int] = []


def place(file: str, line: int) -> str:
    """What to look for: the file's name and the line or row in it."""
    return f"{file.rpartition('/')[2]}:{line}"


def as_text(value: Any) -> Any:
    """Bytes as text, other values as they are; what is no UTF-8 is refused."""
    if isinstance(value, str) and value.isascii():
        return value
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


def _label(value: Any) -> Any:
    label = as_text(value)
    if label is None or label == "" or (isinstance(label, int) and label < 0):
        raise Unreadable("bad row", "it has no label")
    return label


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
