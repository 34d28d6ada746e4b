"""LaCLIP (arXiv:2305.20088): captions are sampled from the originals and from rewritten ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data import lookup
from mmjax.data.sample import Sample, Unreadable
from mmjax.data.storage import path_patterns
from mmjax.data.transforms.common.base import Stage, normalize_weights

Missing = Literal["skip", "original"]

_MIN_WORDS = 2  # shorter rewrites are dropped


class Transform:
    """Adds rewrites to an example's captions: each column of each table is one caption source.

    The captions of a source are equally likely. A rewrite of fewer than two words is dropped, and its weight goes to
    the originals, in proportion to their own weights. Rows are matched to examples by key or id, never by position.

    Args:
      paths: csv, tsv or jsonl tables; braces, globs and lists as for sources. A table may have several rows for one
        example; in jsonl a field may also be a list.
      columns: the fields with rewrites, in each of the tables.
      by: whether rows name examples by ``key`` or ``id``.
      key_column: the field with that key or id; named like ``by`` if left out.
      weights: the probability of each source, up to a factor: the originals first, then the columns table by table;
        equal if left out.
      missing: what happens to an example that a source has no row for. With ``skip`` it is unreadable, so that a table
        with other keys does not pass unnoticed; with ``original`` that source's weight goes to the originals.
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
        self._by, self._missing = by, missing
        if not paths:
            raise ConfigError("paths=(): rewrites needs tables; name csv, tsv or jsonl files")
        if not columns or len(set(columns)) < len(columns):
            raise ConfigError(f"columns={tuple(columns)}: name one or more fields with rewrites, each once")
        tables = path_patterns.expand(paths, key="paths")
        names = [f"{path}:{column}" for path in tables for column in columns]
        self._weights = normalize_weights(
            weights, count=1 + len(names), each="the originals and each source of rewrites"
        )
        sources = [_read(path, column, by, key_column) for path in tables for column in columns]
        self._sources = list(zip(names, sources, self._weights[1:], strict=True))

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample with its captions and their rewrites, and weights that sum to one."""
        own = normalize_weights(sample.weights, count=len(sample.captions), each="each caption")
        rest = self._weights[0]
        captions, weights = list[str](), list[float]()
        for name, source, weight in self._sources:
            texts = source[sample.key if self._by == "key" else sample.id]
            if not texts:
                if self._missing == "skip":
                    raise Unreadable("no caption", f"none in {name}; missing='original' keeps it", key=sample.key)
                rest += weight
            for text in texts:
                if weight > 0 and len(text.split()) >= _MIN_WORDS:
                    captions.append(text)
                    weights.append(weight / len(texts))
                else:
                    rest += weight / len(texts)
        originals = [(text, rest * w) for text, w in zip(sample.captions, own, strict=True) if rest * w > 0]
        return dataclasses.replace(
            sample,
            captions=[text for text, _ in originals] + captions,
            weights=[weight for _, weight in originals] + weights,
        )


def _read(path: str, column: str, by: lookup.By, key_column: str | None) -> lookup.Texts:
    def pairs() -> Iterator[tuple[str | int, str]]:
        for number, row in lookup.rows(path, option="paths"):
            where = f"paths={path!r}: line {number}"
            name = lookup.name_of(row, by, where=where, column=key_column)
            value = lookup.field(row, column, where=where)
            # An empty field counts as a rewrite without words: the example has a row, and keeps its originals.
            values = (value or [""]) if isinstance(value, list) else ["" if value is None else value]
            for text in values:
                yield name, lookup.text_of(text, where=where)

    texts = lookup.Texts(pairs())
    if not len(texts):
        raise ConfigError(f"paths={path!r}: holds no rows; check the file")
    return texts
