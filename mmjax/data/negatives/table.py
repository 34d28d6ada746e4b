"""Texts from a file beside a source, matched to its examples by name: hard negatives, and further captions."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from mmjax.core.config import ConfigError, choose
from mmjax.data import lookup
from mmjax.data.negatives.config import NegativesTable, PositivesTable, TextTable
from mmjax.data.sample import Example
from mmjax.data.source import Source, SourceView
from mmjax.data.text import clean

_SEPARATOR = "\t"  # clean texts have none
_FALSE = ("false", "no", "0", "0.0")

Entry = Callable[[lookup.Row, str], Iterable[str]]
"""What is kept of a row, as texts; the second argument begins its errors."""


class JoinedSource(SourceView, abc.ABC):
    """``source`` with texts of a table; ``add`` says what they are to an example.

    Args:
      source: the examples.
      table: of the texts.
      noun: what they are called.
      entry: what is kept of a row.
      check: raises ConfigError if the rows, which are all read then, are not what was asked for.
    """

    def __init__(
        self, source: Source, table: TextTable, *, noun: str, entry: Entry, check: Callable[[], None] = lambda: None
    ):
        super().__init__(source)
        self._path, self._noun, self._option = table.path, noun, f"{noun}.path"
        names: list[lookup.By] = []  # by which rows name examples; rows are read only once
        self._texts = lookup.Texts(self._read(entry, names))
        check()
        if not len(self._texts):
            raise ConfigError(f"{self._option}={table.path!r}: holds no {noun}; check the file")
        self._by = names[0]
        self._missing = self._find_missing()
        if self._missing is not None and len(self._missing) == len(source):
            raise ConfigError(
                f"{self._option}={table.path!r}: names none of the {len(source)} examples, such as "
                f"{self._missing[0]!r}; write it for this data"
            )

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        name = int(example["id"]) if self._by == "id" else _key(example.get("key", example["id"]))
        return self.add(example, self._texts[name])

    @abc.abstractmethod
    def add(self, example: Example, texts: list[str]) -> Example:
        """The example with its texts."""

    def describe(self) -> str:
        """One line: how many examples have texts, and the name of one that has none."""
        line = f"{len(self._texts):,} {self._noun} in {self._path}"
        if self._missing is None:
            return f"{line}; the source does not list its keys, so examples without any are not counted"
        line = f"{line} for {len(self) - len(self._missing):,} of {len(self):,} examples"
        return f"{line}; {len(self._missing):,} have none, such as {self._missing[0]}" if self._missing else line

    def _find_missing(self) -> list[str | int] | None:
        """Names of the examples without texts; None if the source has no column of names."""
        try:
            names = self._source.column(self._by)
        except ConfigError:
            if self._by == "id" or "key" in self._source.first_readable():
                return None
            try:
                names = self._source.column("id")  # the keys of a source that has no others
            except ConfigError:
                return None
        known = self._texts.has([int(name) if self._by == "id" else _key(name) for name in names.tolist()])
        return names[~known].tolist()

    def _read(self, entry: Entry, names: list[lookup.By]) -> Iterator[tuple[str | int, str]]:
        """Names of examples and texts; puts how examples are named into ``names``."""
        for number, row in lookup.rows(self._path, option=self._option):
            where = f"{self._option}={self._path!r}: line {number}"
            if not names:
                names.append("id" if "key" not in row and "id" in row else "key")
            name = lookup.name_of(row, names[0], where=where)
            texts = list(entry(row, where))
            if not _is_false(row.get("valid")):
                yield from ((name, text) for text in texts)


class WithNegatives(JoinedSource):
    """``source`` with the ``negatives`` of a table, in place of its own; examples that it does not name have none."""

    def __init__(self, source: Source, table: NegativesTable):
        kinds: set[str] = set()

        def entry(row: lookup.Row, where: str) -> Iterator[str]:
            kind, true = (lookup.text_of(row.get(key) or "", where=where) for key in ("kind", "caption"))
            kinds.add(kind := kind or "given")
            for false in _texts_of(row, "negative", where):
                if false != true and (table.kinds is None or kind in table.kinds):
                    yield _SEPARATOR.join((kind, true, false))

        def check() -> None:
            for kind in (table.kinds or ()) if kinds else ():
                choose(kind, kinds, path="negatives.kinds")

        super().__init__(source, table, noun="negatives", entry=entry, check=check)

    def add(self, example: Example, texts: list[str]) -> Example:
        """The example with (kind, true caption, false caption) as its negatives."""
        entries = (text.split(_SEPARATOR) for text in texts)
        return {
            **example,
            "negatives": [(kind, true or example["captions"][0], false) for kind, true, false in entries],
        }


class WithPositives(JoinedSource):
    """``source`` with the captions of a table behind its own; examples that it does not name have their own alone."""

    def __init__(self, source: Source, table: PositivesTable):
        super().__init__(source, table, noun="positives", entry=lambda row, where: _texts_of(row, "positive", where))

    def add(self, example: Example, texts: list[str]) -> Example:
        """The example with more captions; none comes twice, and each weighs as much as its own do on average."""
        captions, weights = example["captions"], example.get("caption_weights")
        if weights is None:
            return {**example, "captions": list(dict.fromkeys([*captions, *texts]))}
        weight_of: dict[str, float] = {}
        for caption, weight in zip(captions, weights, strict=True):
            weight_of[caption] = weight_of.get(caption, 0.0) + weight
        weight_of = dict.fromkeys(texts, sum(weights) / len(weights)) | weight_of
        joined = list(dict.fromkeys([*captions, *texts]))
        return {**example, "captions": joined, "caption_weights": [weight_of[text] for text in joined]}


def _texts_of(row: lookup.Row, column: str, where: str) -> Iterator[str]:
    """The texts of a field, which may be a list; none that is empty."""
    value = lookup.field(row, column, where=where)
    for text in value if isinstance(value, list | np.ndarray) else [value]:
        if cleaned := lookup.text_of("" if text is None else text, where=where):
            yield cleaned


def _key(key: object) -> str:
    """A key as files spell it: bytes of file names that are not UTF-8 are escapes."""
    return clean(str(key).encode("utf-8", "backslashreplace"))


def _is_false(value: object) -> bool:
    return value is not None and str(value).strip().lower() in _FALSE
