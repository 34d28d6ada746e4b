"""Rows of tables and caption files, and the columns that are built from the usable ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmjax.core.config import ConfigError
from mmjax.data.sample import Reason, Unreadable
from mmjax.data.source import UnreadableEntry
from mmjax.data.text import why_not_utf8

_CHUNK = 1 << 14  # rows


class Row(NamedTuple):
    """One row of ``file`` as it was read, before its values are checked."""

    file: str
    line: int
    image: Any  # its name, or its number if the pictures are in the table
    captions: Any  # one text or several, as str or bytes
    negatives: Any = None  # hard negatives of the first caption: a list, or such a list as text
    label: Any = None
    fields: Sequence[Any] = ()


class BadRow(NamedTuple):
    """A row that cannot be used."""

    file: str
    line: int
    reason: Reason
    detail: str


class ColumnBuilder:
    """Collects values into one Arrow array, some at a time, so that few are Python objects."""

    def __init__(self, kind: pa.DataType | None = None):
        self._kind = kind
        self._chunks: list[pa.Array] = []

    def extend(self, values: Sequence[Any]) -> None:
        """Adds values."""
        chunk = pa.array(values, self._kind)
        # More than 2 GB of text need offsets of 64 bits.
        self._chunks.append(chunk.cast(pa.large_string()) if pa.types.is_string(chunk.type) else chunk)

    def array(self) -> pa.Array:
        """All values; if no type was given, of the type that holds them all."""
        tables = [pa.table({"": chunk}) for chunk in self._chunks or [pa.array([], self._kind)]]
        self._chunks = []
        return pa.concat_tables(tables, promote_options="permissive").column(0).combine_chunks()


class RowBuilder:
    """The columns of all usable rows; the others are appended to ``unreadable``.

    ``images``, ``labels`` and ``fields`` have a value per row; ``captions`` and ``owner`` (the row's number) one per
    caption. ``negatives`` are texts of lists, by the number of the caption that they belong to.

    Args:
      rows: in the order of the data set.
      unreadable: where unusable rows are listed.
      named: images have names; otherwise numbers.
      check_name: raises Unreadable for names that rows may not use; called for those that are not plainly relative.
      has_labels: rows without a label are unusable.
      fields: names of the further fields of each row.
    """

    def __init__(
        self,
        rows: Iterable[Row | BadRow],
        unreadable: list[UnreadableEntry],
        *,
        named: bool,
        check_name: Callable[[str], object],
        has_labels: bool,
        fields: Sequence[str],
    ):
        kinds = (
            pa.large_string(),
            pa.large_string() if named else pa.int64(),
            pa.int64(),
            pa.int32(),
            pa.int64(),
            None,
        )
        builders = [*map(ColumnBuilder, kinds), *(ColumnBuilder() for _ in fields)]
        buffers: list[list[Any]] = [[] for _ in range(len(kinds) + 1)]  # values that the builders do not have yet
        captions, images, counts, files, lines, labels, values = buffers

        def flush() -> None:
            for builder, column in zip(builders, [*buffers[:-1], *zip(*values, strict=True)], strict=False):
                builder.extend(column)
            for buffer in buffers:
                buffer.clear()

        self._files: dict[str, int] = {}
        self.negatives: dict[int, str] = {}
        done = 0  # captions
        try:
            for row in rows:
                if isinstance(row, BadRow):
                    unreadable.append((place(row.file, row.line), row.reason, row.detail))
                    continue
                try:
                    texts = _texts(row.captions)
                    image = _image(row.image) if named else row.image
                    if named and (".." in image or ":" in image):
                        check_name(image)
                    negatives = None if row.negatives is None else _literal(row.negatives)
                    label = _label(row.label) if has_labels else None
                    row_values = [as_text(value) for value in row.fields] if fields else ()
                except Unreadable as error:
                    unreadable.append((place(row.file, row.line), error.reason, error.detail))
                    continue
                if negatives is not None:
                    self.negatives[done] = negatives
                done += len(texts)
                captions += texts
                images.append(image)
                counts.append(len(texts))
                files.append(self._files.setdefault(row.file, len(self._files)))
                lines.append(row.line)
                labels.append(label)
                if fields:
                    values.append(row_values)
                if len(images) == _CHUNK:
                    flush()
            flush()
            arrays = [builder.array() for builder in builders]
            self.captions, self.images, counted, file_numbers, line_numbers, self.labels, *columns = arrays
            self.fields = dict(zip(fields, columns, strict=True))
        except (pa.ArrowException, OverflowError) as error:
            reason = " ".join(str(error).split())[:100]
            raise ConfigError(f"columns={tuple(fields)!r}: the values of one are of several types ({reason})") from None
        self.owner = np.repeat(np.arange(len(self.images)), counted.to_numpy())
        self._places = file_numbers, line_numbers

    def place(self, row: int) -> str:
        """The file and line of a row."""
        files, lines = self._places
        return place(list(self._files)[files[row].as_py()], lines[row].as_py())


def place(file: str, line: int) -> str:
    """``name:line``, which names a row in messages and keys."""
    return f"{file.rpartition('/')[2]}:{line}"


def as_text(value: Any) -> Any:
    """Bytes as text, other values unchanged; Unreadable if the text is not UTF-8."""
    if isinstance(value, str) and value.isascii():
        return value
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Unreadable("caption is not UTF-8", why_not_utf8(value)) from None
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
    """The texts that are not blank; of a list, also as JSON (``["a", "b"]`` in a cell of Hugging Face's csv files)."""
    if isinstance(value, str) and value[:2] == '["' and value[-2:] == '"]':
        value = _json_list(value)
    if isinstance(value, str) and value.isascii() and value and not value.isspace():
        return [value]  # nearly all of them
    texts: list[str] = []
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(item, (list, tuple)):
            texts += _texts(item) if any(item) else []
            continue
        text = as_text(item)
        if text is None:
            continue
        if not isinstance(text, str):
            raise Unreadable("bad row", f"a caption is of type {type(text).__name__}")
        if text and not text.isspace():
            texts.append(text)
    if not texts:
        raise Unreadable("no caption", "all are empty")
    return texts


def _json_list(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a caption that looks like one
        return text


def _literal(value: Any) -> str | None:
    if isinstance(value, (list, tuple)):
        return json.dumps([as_text(item) for item in value], ensure_ascii=False) if len(value) else None
    value = as_text(value)
    if value is not None and not isinstance(value, str):
        raise Unreadable("bad row", f"negatives are of type {type(value).__name__}")
    return value if value and not value.isspace() else None
