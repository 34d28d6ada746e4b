"""Captioned images out of rows that name them: grouped by image, in columns instead of objects.

A hundred million captions as Python strings in lists would be tens of gigabytes in every worker; here a row costs its
text and some 20 bytes.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmjax.config import ConfigError
from mmjax.data.sample import Example, Reason, Unreadable
from mmjax.data.text import Norm, captions_of

Skipped = tuple[str, Reason, str]

_CHUNK = 1 << 16
_LITERAL_LIMIT = 1 << 16  # characters of a list of negatives


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
    """Values one after the other to one Arrow array."""

    def __init__(self, kind: pa.DataType | None = None):
        self._kind = kind
        self._values: list[Any] = []
        self._chunks: list[pa.Array] = []

    def append(self, value: Any) -> None:
        """One more; texts are checked before."""
        self._values.append(value)
        # Without a type it is that of all values together.
        if self._kind is not None and len(self._values) == _CHUNK:
            self._flush()

    def array(self) -> pa.Array:
        """All of them."""
        if self._values or not self._chunks:
            self._flush()
        return self._chunks[0] if len(self._chunks) == 1 else pa.concat_arrays(self._chunks)

    def _flush(self) -> None:
        self._chunks.append(pa.array(self._values, self._kind))
        self._values = []


class Captioned:
    """Examples of images and their captions; pictures are the caller's.

    ``skipped`` lists what is left out: rows without picture or text, and rows that say what another one says.

    Args:
      rows: in the order of the data set.
      named: images have names, by which rows are one image's; otherwise numbers, and each row is an example.
      group: rows of one image are one example with several captions; otherwise each row is one, and they share the id.
      fields: names of the further fields of each row.
      labelled: rows have labels: numbers, or names that ``class_names`` lists or that are sorted to be it.
      class_names: of the labels.
      repeats: keep a caption that an image has already.
      norm: cleaning of the captions.
      most: captions an image, the first ones.
    """

    class_names: list[str] | None

    def __init__(
        self,
        rows: Iterable[Row | Broken],
        *,
        named: bool = True,
        group: bool = True,
        fields: Sequence[str] = (),
        labelled: bool = False,
        class_names: list[str] | None = None,
        repeats: bool = True,
        norm: Norm = "none",
        most: int | None = None,
    ):
        self._norm: Norm = norm
        self._most = most
        self.skipped: list[Skipped] = []
        read = _Read(rows, self.skipped, named=named, labelled=labelled, fields=fields)
        self.keys = read.images.array() if named else None
        captions, owner = read.captions.array(), np.frombuffer(read.owners, np.int32)
        negatives = read.negatives.array()
        columns = {name: _numbers(column, name) for name, column in zip(fields, read.fields, strict=True)}
        self.class_names = class_names
        if labelled:
            columns["label"], self.class_names = _labels(read.labels.array(), class_names)
        where = _Where(read.files, read.lines)
        image = None
        if self.keys is not None:
            coded = self.keys.dictionary_encode()  # in the order in which images come first
            image = coded.indices.to_numpy()
            if group:
                self.keys = coded.dictionary
        count = len(read.lines)
        if image is not None and group:
            if not repeats:
                kept = self._without_repeats(image, captions, owner, where)
                captions, owner = captions.take(pa.array(kept)), owner[kept]
                negatives = negatives.take(pa.array(kept))
            first = _first(image)
            for name, column in columns.items():
                _check_agreement(column, name, image, first, where)
                columns[name] = column.take(pa.array(first))
            order = np.argsort(image[owner], kind="stable")
            captions, negatives = captions.take(pa.array(order)), negatives.take(pa.array(order))
            owner, count = image[owner][order], len(first)
        # With every row an example of its own, rows of one image still share its id.
        self.ids = image if image is not None and not group else None
        self.numbers = np.array(read.numbers, np.int64)  # of the images, where they have no names
        self.captions = captions
        self.negatives = negatives if negatives.null_count < len(negatives) else None
        self.starts = np.searchsorted(owner, np.arange(count + 1))
        self.columns = columns

    def __len__(self) -> int:
        return len(self.starts) - 1

    def name(self, index: int) -> str:
        """What the image is called."""
        assert self.keys is not None
        return self.keys[index].as_py()

    def example(self, index: int, *, key: str) -> Example:
        """All of the example but its picture."""
        begin, end = self.starts[index : index + 2].tolist()
        captions = captions_of(self.captions[begin:end].to_pylist(), key, norm=self._norm, most=self._most)
        example: Example = {"id": index if self.ids is None else int(self.ids[index]), "key": key, "captions": captions}
        if self.negatives is not None:
            example["negatives"] = self._negatives(begin, end, key)
        for name, column in self.columns.items():
            value = column[index].as_py()
            example[name] = np.nan if value is None and pa.types.is_floating(column.type) else value
        return example

    def column(self, name: str) -> np.ndarray:
        """``captions`` (a list of texts each), ``key``, ``id``, or a further field, of all examples in order."""
        if name == "captions":
            lists = np.empty(len(self), object)
            for index in range(len(self)):
                lists[index] = self.captions[self.starts[index] : self.starts[index + 1]].to_pylist()
            return lists
        if name == "id":
            return np.arange(len(self)) if self.ids is None else self.ids
        if name == "key" and self.keys is not None:
            return self.keys.to_numpy(zero_copy_only=False)
        if name not in self.columns:
            known = ["captions", "id", *(["key"] if self.keys is not None else []), *self.columns]
            raise ConfigError(f"column={name!r}: no such column; there are {', '.join(known)}; name more in columns=")
        return self.columns[name].to_numpy(zero_copy_only=False)

    def _negatives(self, begin: int, end: int, key: str) -> list[tuple[str, str, str]]:
        assert self.negatives is not None
        triples = []
        for place in range(begin, end):
            text = self.negatives[place].as_py()
            if text is None or not (values := _list_of(text, key)):
                continue
            try:
                true = captions_of(self.captions[place].as_py(), key, norm=self._norm)[0]
                triples += [("given", true, false) for false in captions_of(values, key, norm=self._norm)]
            except Unreadable as error:
                if error.reason != "no caption":
                    raise
        return triples

    def _without_repeats(self, image: np.ndarray, captions: pa.Array, owner: np.ndarray, where: _Where) -> np.ndarray:
        """Places of the captions to keep; the others are listed."""
        codes = captions.dictionary_encode().indices.to_numpy().astype(np.int64)
        _, first = np.unique(image[owner] * (codes.max(initial=0) + 1) + codes, return_index=True)
        kept = np.zeros(len(codes), bool)
        kept[first] = True
        for place in np.flatnonzero(~kept).tolist():
            text = "an earlier row has this image with this caption"
            self.skipped.append((where.text(owner[place]), "duplicate key", text))
        return np.flatnonzero(kept)


class _Where:
    """Where each row is."""

    def __init__(self, files: dict[str, int], lines: np.ndarray):
        self._files, self._lines = list(files), lines

    def text(self, row: int) -> str:
        return place(self._files[self._lines[row, 0]], int(self._lines[row, 1]))


class _Read:
    """Rows taken apart into columns; those without a caption are listed instead."""

    def __init__(
        self,
        rows: Iterable[Row | Broken],
        skipped: list[Skipped],
        *,
        named: bool,
        labelled: bool,
        fields: Sequence[str],
    ):
        text = pa.large_string()
        self.images, self.captions, self.negatives, self.labels = Column(text), Column(text), Column(text), Column()
        self.fields = [Column() for _ in fields]
        self.files: dict[str, int] = {}
        self.numbers: list[int] = []
        owners: list[np.ndarray] = []
        lines: list[np.ndarray] = []
        recent: list[tuple[int, int, int]] = []
        for row in rows:
            if isinstance(row, Broken):
                skipped.append((place(row.file, row.line), row.reason, row.detail))
                continue
            try:
                captions = _texts(row.captions)
                name = _image(row.image) if named else None
                negatives = _literal(row.negatives)
                label = as_text(row.label)
                if labelled and (label is None or label == "" or (isinstance(label, int) and label < 0)):
                    raise Unreadable("bad row", "it has no label")
                values = [as_text(value) for value in row.fields]
            except Unreadable as error:
                skipped.append((place(row.file, row.line), error.reason, error.detail))
                continue
            if named:
                self.images.append(name)
            else:
                self.numbers.append(row.image)
            for number, caption in enumerate(captions):
                self.captions.append(caption)
                self.negatives.append(negatives if number == 0 else None)
            self.labels.append(label)
            for column, value in zip(self.fields, values, strict=True):
                column.append(value)
            recent.append((self.files.setdefault(row.file, len(self.files)), row.line, len(captions)))
            if len(recent) == _CHUNK:
                _store(recent, lines, owners)
        _store(recent, lines, owners)
        self.lines = np.concatenate(lines)
        self.owners = np.concatenate(owners)


def _store(recent: list[tuple[int, int, int]], lines: list[np.ndarray], owners: list[np.ndarray]) -> None:
    done = sum(map(len, lines))
    numbers = np.array(recent, np.int64).reshape(-1, 3)
    lines.append(numbers[:, :2])
    owners.append(np.repeat(np.arange(done, done + len(numbers)), numbers[:, 2]).astype(np.int32))
    recent.clear()


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
    found = []
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


def _list_of(text: str, key: str) -> list[str]:
    """A list of texts as Python or JSON write it, or one text."""
    if not text.lstrip().startswith("["):
        return [text]
    if len(text) > _LITERAL_LIMIT:
        raise Unreadable("bad row", f"a list of negatives of {len(text)} characters", key=key)
    try:
        values = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise Unreadable("bad row", f"negatives are no list: {' '.join(str(error).split())[:100]}", key=key) from None
    if not all(isinstance(value, str) for value in values):
        raise Unreadable("bad row", "negatives are no list of texts", key=key)
    return values


def _numbers(column: Column, name: str) -> pa.Array:
    """A field's values: numbers where all that are there are, otherwise as they are."""
    try:
        array = column.array()
    except (pa.ArrowException, OverflowError) as error:
        raise ConfigError(f"columns={name!r}: its values are of several types ({str(error)[:100]})") from None
    if pa.types.is_string(array.type):
        there = pc.if_else(pc.equal(pc.utf8_trim_whitespace(array), ""), None, pc.utf8_trim_whitespace(array))
        for kind in (pa.int64(), pa.float64()):
            try:
                return pc.cast(there, kind)
            except pa.ArrowInvalid:
                continue
    return array


def _labels(array: pa.Array, class_names: list[str] | None) -> tuple[pa.Array, list[str] | None]:
    if pa.types.is_string(array.type):
        try:
            array = pc.cast(pc.utf8_trim_whitespace(array), pa.int64())
        except pa.ArrowInvalid:
            class_names = sorted(set(array.to_pylist()) - {None}) if class_names is None else class_names
            array = pc.index_in(array, value_set=pa.array(class_names))
    if len(array) and (not pa.types.is_integer(array.type) or array.null_count or pc.min(array).as_py() < 0):
        raise ConfigError("label_column: some rows have a label that is neither a name nor a number from 0")
    return array, class_names


def _first(image: np.ndarray) -> np.ndarray:
    """The first row of each image; images are numbered in the order of these."""
    return np.unique(image, return_index=True)[1]


def _check_agreement(column: pa.Array, name: str, image: np.ndarray, first: np.ndarray, where: _Where) -> None:
    if pa.types.is_nested(column.type):
        column = pa.array([repr(value) for value in column.to_pylist()])
    codes = column.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    other = np.flatnonzero(codes != codes[first][image])
    if len(other):
        raise ConfigError(
            f"columns: {name!r} differs between rows of one image ({where.text(first[image[other[0]]])} and "
            f"{where.text(other[0])}); set group=False, so that each row is an example of its own"
        )
