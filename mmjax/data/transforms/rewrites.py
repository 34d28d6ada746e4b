"""LaCLIP (arXiv:2305.20088): captions are drawn from the originals and from rewritten ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, get_args

import numpy as np

from mmjax.core.config import ConfigError, choose
from mmjax.data import lookup
from mmjax.data.sample import Sample, Unreadable
from mmjax.data.storage import path_patterns
from mmjax.data.transforms.base import Stage

Missing = Literal["skip", "original"]

_FEWEST_WORDS = 2  # a rewrite of fewer says nothing


class Transform:
    """Adds rewrites to an example's captions: each column of each table is a source of captions, as likely as others.

    Of a source's captions each is as likely. A rewrite of fewer than two words is never taken: its weight goes to the
    originals, which share theirs as they did before. Rows belong to examples by key or id, never by their place.

    Args:
      paths: csv, tsv or jsonl tables; braces, globs and lists as for sources. A table in the long form has several
        rows of one example; in jsonl a field may also be a list.
      columns: the fields with rewrites, in each of the tables.
      by: whether examples are named by ``key`` or ``id``.
      key_column: the field that names them; ``by`` where it is not given.
      weights: how likely each source is, the originals first, then table by table the columns; equal where not given.
      missing: what becomes of an example that a source has no row of. ``skip`` counts it as unreadable, so that a
        table of other keys does not pass unnoticed; ``original`` gives that source's weight to the originals.
    """

    stage: ClassVar[Stage] = "captions"

    def __init__(
        self,
        *,
        paths: str | tuple[str, ...] = (),
        columns: tuple[str, ...] = ("caption",),
        by: lookup.By = "key",
        key_column: str | None = None,
        weights: tuple[float, ...] | None = None,
        missing: Missing = "skip",
    ):
        self._by = choose(by, get_args(lookup.By), path="by")
        self._missing = choose(missing, get_args(Missing), path="missing")
        if not paths:
            raise ConfigError("paths=(): rewrites needs tables of them; name csv, tsv or jsonl files")
        if not columns or len(set(columns)) < len(columns):
            raise ConfigError(f"columns={tuple(columns)}: name one or more fields with rewrites, each once")
        tables = path_patterns.expand(paths, key="paths")
        names = [f"{path}:{column}" for path in tables for column in columns]
        self._weights = shares(weights, count=1 + len(names), of="the originals and each source of rewrites")
        sources = [_read(path, column, by, key_column) for path in tables for column in columns]
        self._sources = list(zip(names, sources, self._weights[1:], strict=True))

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample with all captions that it may be given, and their weights, which sum to one."""
        own = shares(sample.weights, count=len(sample.captions), of="each caption")
        rest = self._weights[0]
        captions, weights = list[str](), list[float]()
        for name, source, weight in self._sources:
            texts = source[sample.key if self._by == "key" else sample.id]
            if not texts:
                if self._missing == "skip":
                    raise Unreadable("no caption", f"none in {name}; missing='original' keeps it", key=sample.key)
                rest += weight
            for text in texts:
                if weight > 0 and len(text.split()) >= _FEWEST_WORDS:
                    captions.append(text)
                    weights.append(weight / len(texts))
                else:
                    rest += weight / len(texts)
        originals = [(text, rest * share) for text, share in zip(sample.captions, own, strict=True) if rest * share > 0]
        return dataclasses.replace(
            sample,
            captions=[text for text, _ in originals] + captions,
            weights=[weight for _, weight in originals] + weights,
        )


def shares(weights: Sequence[float] | None, *, count: int, of: str) -> list[float]:
    """``weights`` divided by their sum; ``count`` equal ones where there are none."""
    if weights is None:
        return [1 / count] * count
    total = math.fsum(weights)
    if len(weights) != count or not all(weight >= 0 for weight in weights) or not 0 < total < math.inf:
        raise ConfigError(f"weights={tuple(weights)}: give {count} weights, one for {of}, not all of them 0")
    return [weight / total for weight in weights]


def _read(path: str, column: str, by: lookup.By, key_column: str | None) -> lookup.Texts:
    def pairs() -> Iterator[tuple[str | int, str]]:
        for number, row in lookup.rows(path, option="paths"):
            where = f"paths={path!r}: line {number}"
            name = lookup.name_of(row, by, where=where, column=key_column)
            value = lookup.field(row, column, where=where)
            # No text is one of no words: the example is known, and keeps its originals.
            values = (value or [""]) if isinstance(value, list) else ["" if value is None else value]
            for text in values:
                yield name, lookup.text_of(text, where=where)

    texts = lookup.Texts(pairs())
    if not len(texts):
        raise ConfigError(f"paths={path!r}: holds no rows; check the file")
    return texts
