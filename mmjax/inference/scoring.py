"""Cosines of pictures and their captions, as a table by example."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from mmjax.core.config import ConfigError
from mmjax.data.formats.score_table import Compat, top_scores
from mmjax.data.sample import Example
from mmjax.data.source import Source, SourceView
from mmjax.data.text import clean
from mmjax.inference.embedding import ShardEmbeddings, unreadable_json
from mmjax.inference.shards import UNREADABLE

Reduce = Literal["max", "mean", "each"]
"""One score an example: that of its best caption, or the mean; or one for each of its captions."""

_LIST = pa.list_(pa.float32())


class FieldAsCaptions(SourceView):
    """``source`` with the texts of a field, one or several, as captions; an example without that field has none."""

    def __init__(self, source: Source, field: str):
        super().__init__(source)
        self._field = field
        if field not in (first := source.first_readable()):
            raise ConfigError(
                f"--field={field}: the first example has no such field; it has {', '.join(map(str, first))}; name a "
                "further column of a table with --option columns=NAME"
            )

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        value = example.get(self._field)
        texts = [value] if isinstance(value, str) else [] if value is None else list(value)
        return {**example, "captions": [clean(text) for text in texts if isinstance(text, str)]}


def score_table(shard: ShardEmbeddings) -> pa.Table:
    """The columns ``id``, ``key`` and ``scores``, a list with the cosine of each caption."""
    assert shard.images is not None and shard.texts is not None
    counts = [len(captions) for captions in shard.captions]
    # A row at a time: equal pairs have equal cosines wherever they lie.
    cosines = (np.repeat(shard.images, counts, axis=0).astype(np.float64) * shard.texts).sum(axis=1).astype(np.float32)
    ends = np.cumsum([0, *counts])
    lists = [cosines[start:end] for start, end in itertools.pairwise(ends.tolist())]
    columns = {
        "id": pa.array(shard.ids, pa.int64()),
        "key": pa.array(shard.keys, pa.string()),
        "scores": pa.array(lists, _LIST),
    }
    return pa.table(columns).replace_schema_metadata({UNREADABLE: unreadable_json(shard.unreadable)})


def reduce_scores(tables: Sequence[pa.Table], reduce: Reduce, *, name: str = "score") -> pa.Table:
    """One table with ``score``, or with ``score_0``, ``score_1``, … (null where an example has fewer captions).

    ``name`` is used in place of ``score``.
    """
    table = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    lists = [np.asarray(scores, np.float32) for scores in table["scores"].to_pylist()]
    if reduce == "each":
        most = max(map(len, lists), default=0)
        columns = {
            f"{name}_{k}": pa.array([float(scores[k]) if k < len(scores) else None for scores in lists], pa.float32())
            for k in range(most)
        }
    else:
        best = reduce == "max"
        values = [
            float(np.max(each) if best else np.mean(each, dtype=np.float64)) if len(each) else None for each in lists
        ]
        columns = {name: pa.array(values, pa.float32())}
    return pa.table({"id": table["id"], "key": table["key"], **columns})


def mark_kept(
    table: pa.Table,
    *,
    name: str = "score",
    top: float | None = None,
    minimum: float | None = None,
    compat: Compat | None = None,
) -> tuple[pa.Table, dict[str, Any]]:
    """The table with a column ``keep``, 1 or 0, by its scores, those of the
    column ``name``; and how many are kept, from which score on.

    Which are kept is what ``data.source.selection`` takes: the fraction ``top`` of those that have a score, or all
    that score ``minimum`` or more.
    """
    scores = table[name].to_numpy().astype(np.float64)
    if top is None:
        assert minimum is not None
        kept, threshold = scores >= minimum, minimum
    else:
        kept, threshold = top_scores(scores, top, names=table["key"].to_numpy, compat=compat)
    marked = table.append_column("keep", pa.array(kept.astype(np.int8)))
    return marked, {"kept": int(kept.sum()), "threshold": threshold if np.isfinite(threshold) else None}


def read_table(content: bytes, ending: str, *, name: str = "score") -> pa.Table:
    """What ``format_table`` made, with its types; ``name`` is the column of scores."""
    source = pa.BufferReader(content)
    if ending == "parquet":
        return pq.read_table(source)
    types = {"id": pa.int64(), "key": pa.string(), name: pa.float32()}
    if ending == "csv":
        options = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=False)
        return pyarrow.csv.read_csv(source, convert_options=options)
    schema = pyarrow.json.ParseOptions(explicit_schema=pa.schema(types), unexpected_field_behavior="infer")
    return pyarrow.json.read_json(source, parse_options=schema)


def format_table(table: pa.Table, ending: str) -> bytes:
    """A file of that ending: parquet, csv or jsonl. All have the same numbers."""
    if ending == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="none", use_dictionary=False)
        return sink.getvalue().to_pybytes()
    rows: list[dict[str, Any]] = table.to_pylist()
    if ending == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows(row.values() for row in rows)
    return text.getvalue().encode()
