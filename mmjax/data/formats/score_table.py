"""Columns of numbers from a file beside a source, such as cosines by a model, matched to its examples by name."""

from __future__ import annotations

import fractions
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmjax.core.config import ConfigError
from mmjax.data import lookup
from mmjax.data.sample import QUANTILE, Example
from mmjax.data.source import Source, SourceView
from mmjax.data.storage import filesystem

_NAMES = ("key", "id")  # columns that name examples, the first that both sides have

Compat = Literal["datacomp"]
"""Whose rule says how many are at the top, if not ours."""


def top_scores(
    scores: np.ndarray, top: float, *, names: Callable[[], np.ndarray], compat: Compat | None = None
) -> tuple[np.ndarray, float]:
    """bool[n]: which scores are at the top; and the least score that is.

    These are exactly floor(top · n) of the n scores that are not NaN, ties in the order of their names. By DataComp's
    rule (arXiv:2304.14108; its ``baselines``) all that score at least as high as number int(n · top) from the highest,
    counted from 0: one more than that, and its ties; where there is no such number, all.

    Args:
        scores: f64[n], larger is better.
        top: a fraction.
        names: of the scores, asked for if ties must be broken.
        compat: ``datacomp``, or None.
    """
    known = scores[~np.isnan(scores)]
    if compat == "datacomp":
        place = int(len(known) * top)
        threshold = float(-np.sort(-known)[place]) if place < len(known) else -math.inf
        return scores >= threshold, threshold
    # As a fraction of decimals: 0.29 * 100 is less than 29.
    count = math.floor(fractions.Fraction(str(top)) * len(known))
    if count == 0:
        return np.zeros(len(scores), bool), math.inf
    threshold = float(np.partition(known, len(known) - count)[len(known) - count])
    chosen = scores > threshold
    tied = np.flatnonzero(scores == threshold)
    room = count - int(chosen.sum())
    if room < len(tied):
        tied = tied[np.argsort(names()[tied], kind="stable")]
    chosen[tied[:room]] = True
    return chosen, threshold


class ScoredSource(SourceView):
    """``source`` with the columns of a parquet, csv, tsv or jsonl file as its own; NaN where the file has no score.

    Rows are matched by ``key``, or by ``id`` if the file or the source has no keys. If several examples have one name
    (rows of one image), the file must have as many rows of that name, in the same order.

    Args:
      source: the examples.
      path: of the file, which may also have rows of other examples.
    """

    def __init__(self, source: Source, path: str):
        super().__init__(source)
        self._path = path
        table = _read(path)
        names = [name for name in _NAMES if name in table]
        self._scores = {name: values for name, values in table.items() if name not in _NAMES}
        if not names or not self._scores:
            raise ConfigError(f"scores={path!r}: needs 'key' or 'id' and a column of scores; it has {', '.join(table)}")
        self._file_rows, self._rows = self._match(table, names)
        if not len(self._rows):
            raise ConfigError(f"scores={path!r}: names none of the {len(source)} examples; score this data")

    def column(self, name: str) -> np.ndarray:
        """A column of the file, or else of the source."""
        if name not in self._scores:
            return self._source.column(name)
        values = np.full(len(self), math.nan)
        values[self._rows] = _as_numbers(self._scores[name], name, self._path)[self._file_rows]
        return values

    def _match(self, table: dict[str, Any], names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the file, and the examples that they are of."""
        for name in names:
            try:
                own = self._source.column(name)
            except ConfigError:
                if name == names[-1]:
                    raise
                continue
            break
        count = len(table[name])
        codes = pa.array(_texts([*table[name], *own.tolist()])).dictionary_encode()
        indices = codes.indices.to_numpy()
        in_file, in_source = indices[:count], indices[count:]
        counts = [np.bincount(part, minlength=len(codes.dictionary)) for part in (in_file, in_source)]
        unequal = np.flatnonzero((counts[0] != counts[1]) & (counts[0] > 0) & (counts[1] > 0))
        if len(unequal):
            first = unequal[0]
            raise ConfigError(
                f"scores={self._path!r}: {name} {codes.dictionary[first].as_py()!r} has {counts[0][first]} rows, and "
                f"{counts[1][first]} examples of the source; score this data with the same options"
            )
        common = counts[0] == counts[1]  # and not zero, in whichever side the rows come from
        orders = [np.argsort(part, kind="stable") for part in (in_file, in_source)]
        first_side, second_side = (
            order[common[part[order]]] for order, part in zip(orders, (in_file, in_source), strict=True)
        )
        return first_side, second_side


def join_scores(source: Source, paths: str) -> Source:
    """``source`` with the columns of one file, or of several whose paths are joined by ``::``."""
    for path in paths.split("::"):
        source = ScoredSource(source, path)
    return source


class WithQuantiles(SourceView):
    """``source`` with the field ``score_quantile``: the fraction of all scores that are not above an example's.

    The best has 1, equal scores have the same, and an example without a score has 0.

    Args:
      source: the examples.
      scores: the file of scores, as in ``join_scores``; None: they are a column of the source.
      score: the column.
    """

    def __init__(self, source: Source, scores: str | None, score: str):
        super().__init__(source)
        column = (source if scores is None else join_scores(source, scores)).column(score)
        values = _as_numbers(column.tolist(), score, scores or "the source")
        self._missing, self._score = np.flatnonzero(np.isnan(values)), score
        known = np.sort(values[~np.isnan(values)])
        if not len(known):
            raise ConfigError(f"score={score!r}: no example has such a score; name another column, or score this data")
        # NaN sorts last, above all others.
        self._quantiles = (np.searchsorted(known, values, side="right") / len(known)).astype(np.float32)
        self._quantiles[self._missing] = 0

    def __getitem__(self, index: int) -> Example:
        index = self.check_index(index)
        return {**self._source[index], QUANTILE: float(self._quantiles[index])}

    def column(self, name: str) -> np.ndarray:
        """The quantiles, or a field of the source."""
        return self._quantiles if name == QUANTILE else self._source.column(name)

    def describe(self) -> str:
        """One line: how many examples have a score."""
        line = f"gate: {len(self) - len(self._missing):,} of {len(self):,} examples have a {self._score!r}"
        return f"{line}; the other {len(self._missing):,} are the first to be left out" if len(self._missing) else line


def _read(path: str) -> dict[str, Any]:
    """The columns of the file; those of text files are lists of texts and numbers."""
    if not path.lower().endswith(".parquet"):
        rows = [row for _, row in lookup.rows(path, option="scores")]
        return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    try:
        with filesystem.open_file(path) as file:
            table = pq.read_table(file)
        names = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
        return {name: table[name].to_pylist() if name in _NAMES else table[name].to_numpy() for name in names}
    except (OSError, ValueError, pa.ArrowException) as error:  # pyarrow's errors have several lines
        raise ConfigError(f"scores={path!r}: cannot be read ({' '.join(str(error).split())[:200]}); check it") from None


def _texts(names: list[Any]) -> list[str]:
    """Names as files spell them: bytes of file names that are not UTF-8 are escapes."""
    return [str(name).encode("utf-8", "backslashreplace").decode() for name in names]


def _as_numbers(values: Any, name: str, path: str) -> np.ndarray:
    """f64[n], NaN for None and blank texts."""
    try:
        return np.array([math.nan if value is None or value == "" else value for value in values], np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"scores={path!r}: column {name!r} holds no numbers ({error}); name another") from None
