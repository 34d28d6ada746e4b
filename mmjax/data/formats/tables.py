"""Tables of images and captions: which column is what, and rows of csv, JSON lines, parquet and Arrow.

The way of a row: a reader here yields a ``Row``, ``RowBuilder`` checks it and keeps its values in columns, and
``CaptionTable`` makes examples of them, to which the source adds the image.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from mmjax.core.config import ConfigError, nearest
from mmjax.data.formats.columnar import Columns
from mmjax.data.formats.csv_text import records
from mmjax.data.formats.image_files import ImageFiles
from mmjax.data.formats.json_lines import parse_json_lines
from mmjax.data.formats.row_builder import BadRow, Row
from mmjax.data.sample import Unreadable
from mmjax.data.storage import filesystem
from mmjax.data.text import why_not_utf8

SEPARATORS = ("\t", ",", ";", "|")  # in the order of trial; the first is open_clip's
IMAGES = ("filepath", "image", "image_path", "file_name", "filename", "path", "img", "image_file", "file", "jpg")
CAPTIONS = ("title", "caption", "captions", "text", "texts", "sentence", "sentences", "sentences_raw", "txt", "raw")
NEGATIVES = ("neg_caption", "neg_captions")
RESERVED = ("key", "captions", "negatives", "label", "image")

_DAMAGED = (EOFError, OSError, zlib.error)  # by damaged compressed files
_BOM = b"\xef\xbb\xbf"


class ColumnMapping(NamedTuple):
    """Names of columns; ``among`` replaces those that are None by usual names."""

    image: str | None = None
    captions: tuple[str, ...] | None = None
    negatives: str | None = None
    label: str | None = None
    fields: tuple[str, ...] = ()
    others: tuple[str, ...] = ()  # images of further modalities

    def among(self, names: Sequence[str], path: str) -> ColumnMapping:
        """The mapping for a table with columns ``names``, with usual names for those that were left open."""
        captions = self.captions
        if captions is None:
            usual = _usual(names, CAPTIONS)
            captions = (usual,) if usual else (self.label,) if self.label else None
        image = self.image or _usual(names, IMAGES)
        if image is None or not captions:
            key = "image_column" if image is None else "caption_columns"
            raise ConfigError(
                f"{key}=None: {path!r} has none of the usual names; set it to one of {', '.join(map(repr, names))}"
            )
        mapping = self._replace(image=image, captions=captions, negatives=self.negatives or _usual(names, NEGATIVES))
        for name in self.fields:
            if name in RESERVED or name in self.others:
                raise ConfigError(f"columns={name!r}: every example has a field of that name; leave it out")
        for key, name in mapping.all():
            if list(names).count(name) != 1:
                raise ConfigError(
                    f"{key}={name!r}: {path!r} has {'no' if name not in names else 'more than one'} such column; "
                    f"{nearest(name, names)}"
                )
        return mapping

    def all(self) -> list[tuple[str, str]]:
        """Option and name of each column."""
        pairs = [("image_column", self.image), *(("caption_columns", name) for name in self.captions or ())]
        pairs += [("negative_column", self.negatives), ("label_column", self.label)]
        pairs += [("columns", name) for name in self.fields] + [("modalities", name) for name in self.others]
        return [(key, name) for key, name in pairs if name is not None]

    def taker(self, names: Sequence[str]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
        """A function from the values of columns ``names`` to the fields of a ``Row`` after its line."""
        places = {name: place for place, name in enumerate(names)}
        image = places.get(self.image or "")
        captions = [places[name] for name in self.captions or ()]
        negatives, label = places.get(self.negatives or ""), places.get(self.label or "")
        fields = [places[name] for name in (*self.fields, *self.others) if name in places]
        one = captions[0] if len(captions) == 1 else None
        is_label = label is not None and one == label

        def take(values: Sequence[Any]) -> tuple[Any, ...]:
            texts = [values[place] for place in captions] if one is None else values[one]
            return (
                None if image is None else values[image],
                str(texts) if is_label and isinstance(texts, int) else texts,
                None if negatives is None else values[negatives],
                None if label is None else values[label],
                [values[place] for place in fields] if fields else (),
            )

        return take


def sniff(path: str) -> str:
    """The format of a table by its content: ``csv``, ``jsonl`` or ``parquet``."""
    with _bytes(path) as file:
        try:
            head = file.read(4096)
        except _DAMAGED as error:
            raise _damaged(path, error) from None
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.removeprefix(_BOM).lstrip()
    if not text:
        raise ConfigError(f"path={path!r}: the file is empty; a table begins with its columns' names")
    if text.startswith(b"["):
        raise ConfigError(f"path={path!r}: one JSON list, not one object a line; use the source 'captions'")
    return "jsonl" if text.startswith(b"{") else "csv"


def csv_rows(paths: Sequence[str], columns: ColumnMapping, separator: str | None) -> Iterator[Row | BadRow]:
    """Rows of csv files, whose first line names the columns."""
    for path in paths:
        with _bytes(path) as file:
            lines = _text(file, path)
            header, between = _header(next(lines, ""), columns, path, separator)
            mapping = columns.among(header, path)
            take = mapping.taker(header)
            for line, fields in records(lines, between):
                if isinstance(fields, str):
                    yield BadRow(path, line + 1, "bad row", fields)
                elif len(fields) != len(header):
                    yield BadRow(path, line + 1, "bad row", f"{len(fields)} fields where {len(header)} are named")
                else:
                    yield Row(path, line + 1, *take(fields))


def json_rows(paths: Sequence[str], columns: ColumnMapping) -> Iterator[Row | BadRow]:
    """Rows of files with one JSON object a line."""
    for path in paths:
        take, names = None, []
        with _bytes(path) as file:
            for line, values in parse_json_lines(_guarded(file, path)):
                if isinstance(values, Unreadable):
                    yield BadRow(path, line, values.reason, values.detail)
                    continue
                if take is None:
                    mapping = columns.among(list(values), path)
                    names = [name for _, name in mapping.all()]
                    take = mapping.taker(names)
                yield Row(path, line, *take([values.get(name) for name in names]))


def columnar_rows(
    cells: Columns, columns: ColumnMapping, *, named: bool, class_names: Sequence[str] | None = None
) -> Iterator[Row | BadRow]:
    """Rows of parquet or Arrow files.

    Args:
      cells: the table.
      columns: with the names of its columns.
      named: the image column holds names; otherwise a row's image is its number.
      class_names: become the captions if the label column is the caption column.
    """
    pictures = () if named else ("image_column", "modalities")
    names = list(dict.fromkeys(name for key, name in columns.all() if key not in pictures))
    take = columns.taker(names)
    for first, rows in cells.rows(names):
        if isinstance(rows, Unreadable):
            yield BadRow(*cells.place(first), rows.reason, rows.detail)
            continue
        for number, values in enumerate(rows, first):
            row = Row(*cells.place(number), *take(values))
            if not named:
                row = row._replace(image=number)
            if class_names is not None and columns.captions == (columns.label,):
                known = isinstance(row.label, int) and 0 <= row.label < len(class_names)
                row = row._replace(captions=class_names[row.label] if known else None)
            yield row


def names_images(schema: pa.Schema, column: str) -> bool:
    """Whether a column holds names of images, not the images themselves."""
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return True
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return False
    if pa.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} >= {"bytes"}:
        return False
    raise ConfigError(f"image_column={column!r}: {kind} are no pictures; expected names, bytes or {{bytes, path}}")


def picture_in(value: Any, files: ImageFiles, *, key: str, named: bool = False) -> bytes:
    """The encoded image that a cell holds or names.

    Args:
      value: bytes; a dictionary of ``bytes`` and ``path``; or the path, if ``named``.
      files: those that it may name.
      key: of the example, for errors.
      named: see ``value``.
    """
    if named:
        value = {"bytes": None, "path": value}
    if isinstance(value, dict):
        name = value.get("path")
        if value["bytes"] is None and name:
            try:
                return files.read(name.decode(), key=key)
            except UnicodeDecodeError as error:
                raise Unreadable("bad row", f"its path is not UTF-8: {error}", key=key) from None
        value = value["bytes"]
    if not value:
        raise Unreadable("empty image", "the table has no bytes for it", key=key)
    return value


def others_of(modalities: tuple[str, ...]) -> tuple[str, ...]:
    """The modalities whose columns have the modality's name: all but ``image``, or none if there is only one."""
    if not modalities or len(set(modalities)) != len(modalities):
        raise ConfigError(f"modalities={tuple(modalities)!r}: name one or more, each once")
    if len(modalities) > 1 and "image" not in modalities:
        raise ConfigError(f"modalities={tuple(modalities)!r}: of several one is called 'image'; add it")
    return () if len(modalities) == 1 else tuple(name for name in modalities if name != "image")


def _usual(names: Sequence[str], usual: Iterable[str]) -> str | None:
    return next((name for name in usual if name in names), None)


@contextlib.contextmanager
def _bytes(path: str) -> Iterator[BinaryIO]:
    try:
        file = filesystem.open_file(path)
    except OSError as error:
        raise ConfigError(f"path={path!r}: cannot be read ({error}); name a file") from None
    with file:
        magic = file.read(2)
        file.seek(0)
        if magic == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked  # type: ignore[misc]
        else:
            yield file


def _guarded(file: BinaryIO, path: str) -> Iterator[bytes]:
    try:
        yield from filesystem.read_lines(file, name=f"path={path!r}")
    except _DAMAGED as error:
        raise _damaged(path, error) from None


def _damaged(path: str, error: Exception) -> ConfigError:
    return ConfigError(f"path={path!r}: damaged ({error}); copy it again")


def _text(file: BinaryIO, path: str) -> Iterator[str]:
    """Lines; bytes that are not UTF-8 become surrogates, so that only their row is bad."""
    for number, raw in enumerate(_guarded(file, path)):
        if number == 0:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise ConfigError(f"path={path!r}: is UTF-16; save it as UTF-8")
            raw = raw.removeprefix(_BOM)
        yield raw.decode("utf-8", "surrogateescape")


def _header(line: str, columns: ColumnMapping, path: str, separator: str | None) -> tuple[list[str], str]:
    """The columns' names, and the separator with which the needed ones are among them."""
    failure: ConfigError | None = None
    for tried in SEPARATORS if separator is None else (separator,):
        try:
            names = [name.strip() for name in next(csv.reader([line.rstrip("\r\n")], delimiter=tried), [])]
            columns.among(names, path)
            return names, tried
        except ConfigError as error:
            # The failure of a separator that occurs is the most helpful one.
            failure = error if failure is None or tried in line else failure
        except csv.Error as error:
            failure = ConfigError(f"path={path!r}: its first line is no row of names ({error}); check the format")
    assert failure is not None
    if problem := why_not_utf8(line):
        raise ConfigError(f"path={path!r}: its first line is not UTF-8 ({problem}); save it as UTF-8")
    raise failure
