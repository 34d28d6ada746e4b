"""CaptionTable images out of rows that name them: grouped by image, in columns instead of objects.

A hundred million captions as Python strings in lists would be tens of gigabytes in every worker; here a row costs its
text and some 20 bytes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmjax.core.config import ConfigError
from mmjax.data.formats.row_builder import BadRow, Row, RowBuilder
from mmjax.data.sample import Example, Unreadable
from mmjax.data.source import UnreadableEntry
from mmjax.data.text import Norm, captions_of

_LITERAL_LIMIT = 1 << 16  # characters of a list of negatives


class CaptionTable:
    """Examples of images and their captions; pictures are the caller's.

    ``unreadable`` lists what is left out: rows without picture or text, and rows that say what another one says.

    Args:
      rows: in the order of the data set.
      named: images have names, by which rows are one image's; otherwise numbers, and each row is an example.
      group: rows of one image are one example with several captions; otherwise each row is one, and they share the id.
      fields: names of the further fields of each row.
      texts: names of those after them, which are texts whatever they look like.
      labelled: rows have labels: numbers, or names that ``class_names`` lists or that are sorted to be it.
      class_names: of the labels.
      repeats: keep a caption that an image has already.
      norm: cleaning of the captions.
      most: captions an image, the first ones.
    """

    class_names: list[str] | None

    def __init__(
        self,
        rows: Iterable[Row | BadRow],
        *,
        named: bool = True,
        group: bool = True,
        fields: Sequence[str] = (),
        texts: Sequence[str] = (),
        labelled: bool = False,
        class_names: list[str] | None = None,
        repeats: bool = True,
        norm: Norm = "none",
        most: int | None = None,
    ):
        self._norm: Norm = norm
        self._most = most
        self.unreadable: list[UnreadableEntry] = []
        taken = RowBuilder(rows, self.unreadable, named=named, labelled=labelled, fields=[*fields, *texts])
        captions, owner = taken.captions, taken.owner
        columns = {name: column if name in texts else _numbers(column) for name, column in taken.fields.items()}
        self.class_names = class_names
        if labelled:
            columns["label"], self.class_names = _labels(taken.labels, class_names)
        self.keys = taken.images if named else None
        self.numbers = np.arange(0) if named else taken.images.to_numpy()  # of the images that have no names
        self.ids: np.ndarray | None = None  # where rows of one image are several examples
        count = len(taken.images)
        # Of each caption its place among all that were read, to which the negatives refer.
        places = np.arange(len(captions))
        if self.keys is not None:
            coded = self.keys.dictionary_encode()  # in the order in which images come first
            image = coded.indices.to_numpy()
            if not group:
                self.ids = image
            elif len(coded.dictionary) < count:
                self.keys = coded.dictionary
                first = np.unique(image, return_index=True)[1]
                for name, column in columns.items():
                    _check_agreement(column, name, image, first, taken)
                    columns[name] = column.take(pa.array(first))
                if not repeats:
                    places = self._without_repeats(image, captions, owner, taken)
                places = places[np.argsort(image[owner[places]], kind="stable")]
                captions, owner, count = captions.take(pa.array(places)), image[owner[places]], len(first)
        self.captions = captions
        self.starts = np.searchsorted(owner, np.arange(count + 1))
        self.negatives: pa.Array | None = None
        if taken.negatives:
            self.negatives = pa.array([taken.negatives.get(place) for place in places.tolist()], pa.large_string())
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

    def _without_repeats(
        self, image: np.ndarray, captions: pa.Array, owner: np.ndarray, taken: RowBuilder
    ) -> np.ndarray:
        """Places of the captions to keep; the others are listed."""
        codes = captions.dictionary_encode().indices.to_numpy().astype(np.int64)
        _, first = np.unique(image[owner] * (codes.max(initial=0) + 1) + codes, return_index=True)
        kept = np.zeros(len(codes), bool)
        kept[first] = True
        for place in np.flatnonzero(~kept).tolist():
            text = "an earlier row has this image with this caption"
            self.unreadable.append((taken.place(owner[place]), "duplicate key", text))
        return np.flatnonzero(kept)


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


def _numbers(array: pa.Array) -> pa.Array:
    """A field's values: numbers where all that are there are, otherwise as they are."""
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
            class_names = sorted(set(array.to_pylist()) - {None}) if class_names is None else class_names
            array = pc.index_in(array, value_set=pa.array(class_names, pa.large_string()))
    if len(array) and (not pa.types.is_integer(array.type) or array.null_count or pc.min(array).as_py() < 0):
        raise ConfigError("label_column: some rows have a label that is neither a name nor a number from 0")
    return array, class_names


def _check_agreement(column: pa.Array, name: str, image: np.ndarray, first: np.ndarray, taken: RowBuilder) -> None:
    if pa.types.is_nested(column.type):
        column = pa.array([repr(value) for value in column.to_pylist()])
    codes = column.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    other = np.flatnonzero(codes != codes[first][image])
    if len(other):
        raise ConfigError(
            f"columns: {name!r} differs between rows of one image ({taken.place(first[image[other[0]]])} and "
            f"{taken.place(other[0])}); set group=False, so that each row is an example of its own"
        )
