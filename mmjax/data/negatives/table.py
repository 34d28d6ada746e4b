"""Hard negatives from a file beside a source, matched to its examples by name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data import lookup
from mmjax.data.negatives.config import NegativesTable
from mmjax.data.sample import Example
from mmjax.data.source import Source, SourceView
from mmjax.data.text import clean

_OPTION = "negatives.path"
_SEPARATOR = "\t"  # clean texts have none
_FALSE = ("false", "no", "0", "0.0")


class WithNegatives(SourceView):
    """``source`` with the ``negatives`` of a table, in place of its own; examples that it does not name have none."""

    def __init__(self, source: Source, table: NegativesTable):
        super().__init__(source)
        self._path = table.path
        names: list[lookup.By] = []  # by which rows name examples; rows are read only once
        self._texts = lookup.Texts(_read(table, names))
        if not len(self._texts):
            kinds = "" if table.kinds is None else f" of kinds={tuple(table.kinds)}"
            raise ConfigError(f"{_OPTION}={table.path!r}: holds no negatives{kinds}; check the file")
        self._by = names[0]
        self._missing = self._find_missing()
        if self._missing is not None and len(self._missing) == len(source):
            raise ConfigError(
                f"{_OPTION}={table.path!r}: names none of the {len(source)} examples, such as {self._missing[0]!r}; "
                "write it for this data"
            )

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        negatives = []
        for text in self._texts[self._name(example)]:
            kind, true, false = text.split(_SEPARATOR)
            negatives.append((kind, true or example["captions"][0], false))
        return {**example, "negatives": negatives}

    def describe(self) -> str:
        """One line: how many examples have negatives, and the name of one that has none."""
        line = f"{len(self._texts):,} negatives in {self._path}"
        if self._missing is None:
            return f"{line}; the source does not list its keys, so examples without any are not counted"
        line = f"{line} for {len(self) - len(self._missing):,} of {len(self):,} examples"
        return f"{line}; {len(self._missing):,} have none, such as {self._missing[0]}" if self._missing else line

    def _name(self, example: Example) -> str | int:
        return int(example["id"]) if self._by == "id" else _key(example.get("key", example["id"]))

    def _find_missing(self) -> list[str | int] | None:
        """Names of the examples without negatives; None if the source has no column of names."""
        try:
            names = self._source.column(self._by)
        except ConfigError:
            return None
        known = self._texts.has([int(name) if self._by == "id" else _key(name) for name in names.tolist()])
        return names[~known].tolist()


def _read(table: NegativesTable, names: list[lookup.By]) -> Iterator[tuple[str | int, str]]:
    """Name of the example, and kind, true and false caption as one text; puts how examples are named into ``names``."""
    for number, row in lookup.rows(table.path, option=_OPTION):
        where = f"{_OPTION}={table.path!r}: line {number}"
        if not names:
            names.append("id" if "key" not in row and "id" in row else "key")
        name = lookup.name_of(row, names[0], where=where)
        kind, true = (lookup.text_of(row.get(key) or "", where=where) for key in ("kind", "caption"))
        value = lookup.field(row, "negative", where=where)
        if _is_false(row.get("valid")) or (table.kinds is not None and kind not in table.kinds):
            continue
        for negative in value if isinstance(value, list | np.ndarray) else [value]:
            false = lookup.text_of("" if negative is None else negative, where=where)
            if false and false != true:
                yield name, _SEPARATOR.join((kind or "given", true, false))


def _key(key: object) -> str:
    """A key as files spell it: bytes of file names that are not UTF-8 are escapes."""
    return clean(str(key).encode("utf-8", "backslashreplace"))


def _is_false(value: object) -> bool:
    return value is not None and str(value).strip().lower() in _FALSE
