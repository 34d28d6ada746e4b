"""What ``mmjax generate`` wrote: the records that its filters keep."""

from __future__ import annotations

import glob
import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmjax.core.config import ConfigError, nearest
from mmjax.data import source
from mmjax.data.formats import generated_records
from mmjax.data.formats.generated_records import SCORE, Record
from mmjax.data.formats.record_files import ArrayRecords, Spans
from mmjax.data.sample import Example, Unreadable
from mmjax.data.storage.filesystem import MAX_MIB, MaxMib
from mmjax.data.text import captions_of


class Source(source.Source):
    """The kept records of one split of a folder that ``mmjax generate --output`` wrote.

    Captions have the weights that the recipe gave them (``caption_weights``); those of weight zero are left out. False
    captions are hard negatives, as ``data.negatives_per_image`` asks for them. ``column`` has the recipe's scores.

    With ``questions`` each question that the recipe ``seltda`` made is an example: the caption is the question, and
    ``answer`` its answer. Those of a picture have its ``id``; those whose statement has the weight zero are left out.

    Args:
      split: of the recipe's input.
      path: the folder.
      modalities: ``image`` alone.
      sources: which captions: ``raw``, ``caption``, ``rewrite``, ``qa``, ``edit``, ``detail``; all if left out.
      questions: questions in place of captions.
      max_mib: largest record in MiB; a larger one is unreadable.
    """

    def __init__(
        self,
        split: str,
        *,
        path: str,
        modalities: tuple[str, ...] = ("image",),
        sources: tuple[str, ...] | None = None,
        questions: bool = False,
        max_mib: MaxMib = MAX_MIB,
    ):
        if tuple(modalities) != ("image",):
            raise ConfigError(f"modalities={tuple(modalities)}: generated records have images alone; use ('image',)")
        self._sources = None if sources is None else set(sources)
        folder = os.path.expanduser(path)
        names = sorted(glob.glob(f"{glob.escape(folder)}/{generated_records.KIND}-*-of-*.parquet"))
        if not names:
            raise ConfigError(f"path={path!r}: holds no shards of mmjax generate; run it again, or name its --output")
        count = int(names[0].rpartition("-of-")[2].removesuffix(".parquet"))
        if len(names) != count:
            raise ConfigError(
                f"path={path!r}: has {len(names)} of {count} shards; the same mmjax generate command makes the others"
            )
        self._table = pa.concat_tables([pq.read_table(name) for name in names], promote_options="default")
        self._files = ArrayRecords([f"{name.removesuffix('.parquet')}.array_record" for name in names], max_mib=max_mib)
        spans = Spans([(file, 0, int(rows)) for file, rows in enumerate(self._files.counts)])
        if len(spans) != len(self._table):
            raise ConfigError(
                f"path={path!r}: has {len(spans)} records and {len(self._table)} rows; copy the folder again"
            )
        splits = self._table["split"].to_pylist()
        kept = self._table["keep"].to_numpy()
        rows = [row for row, name in enumerate(splits) if name == split and kept[row]]
        if not rows:
            has = sorted({name for row, name in enumerate(splits) if kept[row]})
            raise ConfigError(f"split={split!r}: {path} keeps no record of it; {nearest(split, has)}")
        self._places = [spans[row] for row in rows]
        self._table = self._table.take(rows)
        self._has_negatives = bool(self._table["negatives"].to_numpy().any())
        self._rows, self._numbers = np.arange(len(rows)), None
        if questions:
            self._rows, self._numbers = self._find_questions()
            self.rows_share_images = True
            if not len(self._rows):
                raise ConfigError(f"questions=True: {path} has none with a statement; the recipe seltda makes them")

    @property
    def id_limit(self) -> int:
        """The number of records."""
        return len(self._places)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        index = self.check_index(index)
        row = int(self._rows[index])
        record = self._record(row)
        if self._numbers is not None:
            return self._question(record, row, int(self._numbers[index]))
        chosen = [
            (number, caption)
            for number, caption in enumerate(record.captions)
            if caption.get("weight", 1.0) > 0 and (self._sources is None or caption["source"] in self._sources)
        ]
        # Cleaned, as sources do it; a text that is nothing then has no weight.
        texts = [(captions_of(c["text"], record.key)[0], c) for _, c in chosen if c["text"].strip()]
        if not texts:
            raise Unreadable("no caption", "none with a weight", key=record.key)
        if record.image is None:
            raise Unreadable("empty image", "the record has none; use captions-SPLIT.jsonl", key=record.key)
        example: Example = {name: value for name, value in record.fields.items() if name != "scene"}
        example |= {"id": row, "key": record.id, "captions": [text for text, _ in texts], "image": record.image}
        weights = [float(caption.get("weight", 1.0)) for _, caption in texts]
        if len(set(weights)) > 1:
            example["caption_weights"] = weights
        if self._has_negatives:
            example["negatives"] = [
                (negative["kind"], record.captions[negative["of"]]["text"], negative["text"])
                for negative in record.negatives
            ]
        if record.boxes:
            example["boxes"] = record.boxes
        return example

    def record(self, index: int) -> Record:
        """The whole record of that index, with what was decided about it."""
        return self._record(int(self._rows[index]))

    def _find_questions(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and numbers of questions whose statement, the caption of the same number, has a weight."""
        places = [
            (row, number)
            for row, (sources, weights) in enumerate(
                zip(self._table["sources"].to_pylist(), self._table["weights"].to_pylist(), strict=True)
            )
            for number, weight in enumerate(w for source, w in zip(sources, weights, strict=True) if source == "qa")
            if weight > 0
        ]
        chosen, numbers = np.array(places, np.int64).reshape(-1, 2).T
        return chosen, numbers

    def _question(self, record: Record, row: int, number: int) -> Example:
        if record.image is None:
            raise Unreadable("empty image", "the record has none", key=record.key)
        one = record.qa[number]
        return {
            "id": row,
            "key": f"{record.id}.{number}",
            "captions": captions_of(one["q"], record.key),
            "answer": one["a"].lower(),
            "image": record.image,
        }

    def _record(self, row: int) -> Record:
        try:
            record = Record.from_bytes(self._files.read(*self._places[row]))
        except ValueError as error:
            if isinstance(error, Unreadable):
                raise
            raise Unreadable("bad row", str(error)) from None
        record.decide(self._table.slice(row, 1).to_pylist()[0])
        return record

    def column(self, name: str) -> np.ndarray:
        """``key``, ``id``, ``parent_id``, or a score by its name, of all examples."""
        if name == "id":
            return self._rows
        columns = {"key": "id", "parent_id": "parent_id", "source_key": "key"} | self._scores()
        if name in ("captions", "answer"):
            texts = np.empty(len(self), object)
            texts[:] = [self[index][name] for index in range(len(self))]
            return texts
        if name not in columns:
            raise ConfigError(f"column={name!r}: generated records have no such column; {nearest(name, columns)}")
        values: Any = self._table[columns[name]].to_numpy()[self._rows]
        return values

    def _scores(self) -> dict[str, str]:
        return {name.removeprefix(SCORE): name for name in self._table.column_names if name.startswith(SCORE)}
