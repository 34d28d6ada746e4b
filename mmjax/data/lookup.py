"""Tables beside a data set, such as rewritten captions: their rows, and texts looked up by an example's key or id."""

from __future__ import annotations

import array
import codecs
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmjax.core.config import ConfigError
from mmjax.data.formats.csv_text import records
from mmjax.data.formats.json_lines import parse_json_lines
from mmjax.data.sample import Unreadable
from mmjax.data.storage import filesystem
from mmjax.data.text import clean

By = Literal["key", "id"]
"""How a table names examples: by ``key``, or by ``id``."""

Row = Mapping[str, Any]


def rows(path: str, *, option: str) -> Iterator[tuple[int, Row]]:
    """Line number and fields of each row of a csv, tsv or jsonl file in UTF-8, or of a parquet file.

    Args:
      path: of a file; csv and tsv files begin with a line of names. The first row of a parquet file is line 1.
      option: the option that errors name, with the line.
    """
    ending = path.rpartition(".")[2].lower()
    if ending not in _READERS:
        raise ConfigError(f"{option}={path!r}: not a table; name a file that ends in .csv, .tsv, .jsonl or .parquet")
    try:
        file = filesystem.open_file(path)
    except OSError as error:
        raise ConfigError(f"{option}={path!r}: cannot be read ({error.strerror or error}); check the name") from None
    with file:
        yield from _READERS[ending](file, path, option)


def field(row: Row, name: str, *, where: str) -> Any:
    """``row[name]``; ``where`` begins the error if there is no such field."""
    if name not in row:
        raise ConfigError(f"{where}: has no {name!r}; its fields are {', '.join(map(str, row)) or 'none'}")
    return row[name]


def text_of(value: Any, *, where: str) -> str:
    """A field that must be a text or a number, as clean text."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ConfigError(f"{where}: expected a text, found {type(value).__name__}; correct that line")
    try:
        return clean(value)
    except Unreadable as error:
        raise ConfigError(f"{where}: {error.reason}; correct that line") from None


def name_of(row: Row, by: By, *, where: str, column: str | None = None) -> str | int:
    """The key or id of the example that a row is about, from the field ``column``."""
    value = field(row, column or by, where=where)
    if by == "key":
        return text_of(value, where=where)
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: {value!r} is not an id; ids are whole numbers, or use by='key'") from None


class Texts:
    """Texts by key or id in three arrays, for tables of millions: ``texts[name]`` are those of one, in order.

    Keys are stored as 64-bit hashes: among n texts, a key that is not there has another's texts with probability
    n / 2⁶⁴.
    """

    def __init__(self, pairs: Iterable[tuple[str | int, str]]):
        names, ends, blob = array.array("q"), array.array("q", [0]), bytearray()
        for name, text in pairs:
            names.append(_number(name))
            blob += text.encode()
            ends.append(len(blob))
        numbers = np.frombuffer(names, np.int64) if names else np.zeros(0, np.int64)
        self._order = np.argsort(numbers, kind="stable")
        self._names = numbers[self._order]
        self._ends = np.frombuffer(ends, np.int64)
        self._blob = bytes(blob)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str | int) -> list[str]:
        """The texts of that name, perhaps none."""
        number = np.int64(_number(name))
        first, last = np.searchsorted(self._names, number), np.searchsorted(self._names, number, side="right")
        return [self._blob[self._ends[i] : self._ends[i + 1]].decode() for i in self._order[first:last].tolist()]

    def has(self, names: Sequence[str | int]) -> np.ndarray:
        """bool[n]: which of ``names`` have texts."""
        numbers = np.fromiter(map(_number, names), np.int64, len(names))
        return np.isin(numbers, self._names)


def _number(name: str | int) -> int:
    if isinstance(name, str):
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)
    return name


def _lines(file: BinaryIO, path: str, option: str) -> Iterator[str]:
    for number, line in enumerate(filesystem.read_lines(file, name=f"{option}={path!r}"), 1):
        try:
            yield line.removeprefix(codecs.BOM_UTF8).decode() if number == 1 else line.decode()
        except UnicodeDecodeError:
            raise ConfigError(f"{option}={path!r}: line {number} is not UTF-8; correct that line") from None


def _json(file: BinaryIO, path: str, option: str) -> Iterator[tuple[int, Row]]:
    for number, row in parse_json_lines(filesystem.read_lines(file, name=f"{option}={path!r}")):
        if isinstance(row, Unreadable):
            problem = "is not UTF-8" if row.reason == "caption is not UTF-8" else "is not a JSON object"
            raise ConfigError(f"{option}={path!r}: line {number} {problem}; correct that line")
        yield number, row


def _parquet(file: BinaryIO, path: str, option: str) -> Iterator[tuple[int, Row]]:
    try:
        batches = pq.ParquetFile(file).iter_batches()
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    except (OSError, ValueError, pa.ArrowException) as error:  # pyarrow's errors have several lines
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{option}={path!r}: cannot be read ({reason}); check it") from None


def _delimited(file: BinaryIO, path: str, option: str, *, separator: str = ",") -> Iterator[tuple[int, Row]]:
    names: list[str] | None = None
    for number, values in records(_lines(file, path, option), separator):
        if isinstance(values, str):
            raise ConfigError(f"{option}={path!r}: line {number}: {values}; correct that line")
        if names is None:
            names = [value.strip() for value in values]
        elif len(values) != len(names):
            raise ConfigError(
                f"{option}={path!r}: line {number} has {len(values)} fields, the first line {len(names)}; quote fields "
                "that hold the separator"
            )
        else:
            yield number, dict(zip(names, values, strict=True))


_READERS: dict[str, Callable[[BinaryIO, str, str], Iterator[tuple[int, Row]]]] = {
    "csv": _delimited,
    "tsv": functools.partial(_delimited, separator="\t"),
    "jsonl": _json,
    "parquet": _parquet,
}
