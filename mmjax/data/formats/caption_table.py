"""A table of images and their captions, built from rows and kept in columns.

A row takes its text and some 20 bytes; lists of Python strings would take tens of gigabytes per 100 million captions.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmjax.core.config import ConfigError
from mmjax.data.formats.row_builder import BadRow, Row, RowBuilder
from mmjax.data.sample import Example, Unreadable
from mmjax.data.source import UnreadableEntry
from mmjax.data.text import Norm, captions_of, negatives_of

_LITERAL_LIMIT = 1 << 16  # characters of a list of negatives


class CaptionTable:
    """Examples without their images, which the source reads.

    ``unreadable`` lists the rows that were left out: those without a picture or text, and duplicates.

    Args:
      rows: in the order of the data set.
      named: images have names; otherwise numbers, and each row is an example.
      check_name: see ``RowBuilder``.
      group: rows of one image become one example with several captions; otherwise each row is one, and rows of one
        image share the id.
      fields: names of the further fields of each row.
      texts: names of fields after these, which stay texts even if they look like numbers.
      has_labels: rows have labels: numbers, or names.
      class_names: of the labels; None: the sorted names that occur.
      repeats: keep a caption that its image already has.
      norm: cleaning of the captions.
      most: captions an image, the first ones.
    """

    class_names: list[str] | None

    def __init__(
        self,
        rows: Iterable[Row | BadRow],
        *,
        named: bool = True,
        check_name: Callable[[str], object] = str,
        group: bool = True,
        fields: Sequence[str] = (),
        texts: Sequence[str] = (),
        has_labels: bool = False,
        class_names: list[str] | None = None,
        repeats: bool = True,
        norm: Norm = "none",
        most: int | None = None,
    ):
        self._norm: Norm = norm
        self._most = most
        self.unreadable: list[UnreadableEntry] = []
        builder = RowBuilder(
            rows,
            self.unreadable,
            named=named,
            check_name=check_name,
            has_labels=has_labels,
            fields=[*fields, *texts],
        )
        captions, owner = builder.captions, builder.owner
        columns = {name: column if name in texts else _numbers(column) for name, column in builder.fields.items()}
        self.class_names = class_names
        if has_labels:
            columns["label"], self.class_names = _labels(builder.labels, class_names)
        self.keys = builder.images if named else None
        self.numbers = np.arange(0) if named else builder.images.to_numpy()  # of images without names
        self.ids: np.ndarray | None = None  # if rows of one image are several examples
        count = len(builder.images)
        # The number of each caption among all that were read; the negatives refer to it.
        places = np.arange(len(captions))
        if self.keys is not None:
            coded = self.keys.dictionary_encode()  # in the order of first occurrence
            image = coded.indices.to_numpy()
            if not group:
                self.ids = image
            elif len(coded.dictionary) < count:
                self.keys = coded.dictionary
                first = np.unique(image, return_index=True)[1]
                for name, column in columns.items():
                    _check_agreement(column, name, image, first, builder)
                    columns[name] = column.take(pa.array(first))
                if not repeats:
                    places = self._without_repeats(image, captions, owner, builder)
                places = places[np.argsort(image[owner[places]], kind="stable")]
                captions, owner, count = captions.take(pa.array(places)), image[owner[places]], len(first)
        self.captions = captions
        self.starts = np.searchsorted(owner, np.arange(count + 1))
        self.negatives: pa.Array | None = None
        if builder.negatives:
            self.negatives = pa.array([builder.negatives.get(place) for place in places.tolist()], pa.large_string())
        self.columns = columns

    def check_not_empty(self, path: object) -> None:
        """ConfigError with the first reason if there is no example; ``path`` is the option that named the table."""
        if not len(self):
            rows = f"none of its {len(self.unreadable):,} rows can be used; the first one"
            first = ": ".join(self.unreadable[0]) if self.unreadable else ""
            raise ConfigError(f"path={path!r}: {f'{rows}: {first}' if first else 'the table has no rows; fill it'}")

    def __len__(self) -> int:
        return len(self.starts) - 1

    def name(self, index: int) -> str:
        """The name of an image."""
        assert self.keys is not None
        return self.keys[index].as_py()

    def example(self, index: int, *, key: str) -> Example:
        """The example without its image."""
        begin, end = self.starts[index : index + 2].tolist()
        captions = captions_of(self.captions[begin:end].to_pylist(), key, norm=self._norm, most=self._most)
        example: Example = {"id": index if self.ids is None else int(self.ids[index]), "key": key, "captions": captions}
        if self.negatives is not None:
            example["negatives"] = self._negatives(begin, end, key)
        for name, column in self.columns.items():
            if name == "id":  # for ``id_column`` alone
                continue
            value = column[index].as_py()
            example[name] = np.nan if value is None and pa.types.is_floating(column.type) else value
        return example

    def column(self, name: str) -> np.ndarray:
        """``captions`` (lists of texts), ``key``, ``id`` or a further field of all examples."""
        if name == "captions":
            lists = np.empty(len(self), object)
            for index in range(len(self)):
                lists[index] = self.captions[self.starts[index] : self.starts[index + 1]].to_pylist()
            return lists
        if name == "id" and "id" not in self.columns:
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
            if text is not None:
                true = self.captions[place].as_py()
                triples += negatives_of(_list_of(text, key), true, key, norm=self._norm)
        return triples

    def _without_repeats(
        self, image: np.ndarray, captions: pa.Array, owner: np.ndarray, builder: RowBuilder
    ) -> np.ndarray:
        """Numbers of the captions to keep; the others are listed as duplicates."""
        codes = captions.dictionary_encode().indices.to_numpy().astype(np.int64)
        _, first = np.unique(image[owner] * (codes.max(initial=0) + 1) + codes, return_index=True)
        kept = np.zeros(len(codes), bool)
        kept[first] = True
        for place in np.flatnonzero(~kept).tolist():
            text = "an earlier row has this image with this caption"
            self.unreadable.append((builder.place(owner[place]), "duplicate key", text))
        return np.flatnonzero(kept)


def _list_of(text: str, key: str) -> list[str]:
    """The texts of a list in Python or JSON syntax, or one text."""
    if not text.lstrip().startswith("["):
        return [text]
    if len(text) > _LITERAL_LIMIT:
        raise Unreadable("bad row", f"a list of negatives of {len(text)} characters", key=key)
    try:
        values = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise Unreadable("bad row", f"bad negatives: {' '.join(str(error).split())[:100]}", key=key) from None
    if not all(isinstance(value, str) for value in values):
        raise Unreadable("bad row", "negatives are not a list of texts", key=key)
    return values


def _numbers(array: pa.Array) -> pa.Array:
    """A field's values, as numbers if all of them are."""
    if pa.types.is_large_string(array.type):
        there = pc.if_else(pc.equal(pc.utf8_trim_whitespace(array), ""), None, pc.utf8_trim_whitespace(array))
        for kind in (pa.int64(), pa.float64()):
            try:
                return pc.cast(there, kind)
            except pa.ArrowInvalid:
                continue
    return array


def _labels(array: pa.Array, class_names: list[str] | None) -> tuple[pa.Array, list[str] | None]:
    if pa.types.is_large_string(array.type):
        try:
            array = pc.cast(pc.utf8_trim_whitespace(array), pa.int64())
        except pa.ArrowInvalid:
            there = sorted(set(array.to_pylist()) - {None})
            class_names = there if class_names is None else class_names
            if unknown := [name for name in there if name not in set(class_names)]:
                raise ConfigError(
                    f"class_names: {unknown[0]!r} is not among them, a label of some rows; add it"
                ) from None
            array = pc.index_in(array, value_set=pa.array(class_names, pa.large_string()))
    if len(array) and (not pa.types.is_integer(array.type) or array.null_count or pc.min(array).as_py() < 0):
        raise ConfigError("label_column: some rows have a label that is neither a name nor a number from 0")
    if class_names is not None and len(array) and pc.max(array).as_py() >= len(class_names):
        raise ConfigError(
            f"class_names: {len(class_names)} names, and the label {pc.max(array)} of some rows; name all"
        )
    return array, class_names


def _check_agreement(column: pa.Array, name: str, image: np.ndarray, first: np.ndarray, builder: RowBuilder) -> None:
    if pa.types.is_nested(column.type):
        column = pa.array([repr(value) for value in column.to_pylist()])
    codes = column.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    other = np.flatnonzero(codes != codes[first][image])
    if len(other):
        raise ConfigError(
            f"columns: {name!r} differs between rows of one image ({builder.place(first[image[other[0]]])} and "
            f"{builder.place(other[0])}); set group=False, so that each row is an example of its own"
        )
