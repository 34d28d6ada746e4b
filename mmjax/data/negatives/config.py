"""The sections ``data.negatives``, ``data.positives`` and ``data.teacher``."""

from __future__ import annotations

import dataclasses
from typing import Self


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTable:
    """A file of texts beside a source, of the training split alone unless ``{split}`` is in its path."""

    path: str

    def for_split(self, split: str) -> Self | None:
        """The table of a split, if it has one."""
        if split != "train" and "{split}" not in self.path:
            return None
        return dataclasses.replace(self, path=self.path.replace("{split}", split))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegativesTable(TextTable):
    """A file of hard negatives: parquet, jsonl, csv or tsv, as ``mmjax data negatives`` writes it.

    A row has ``key`` (or ``id``), which names the example, and ``negative``, a false caption of it; in jsonl and
    parquet also a list of them. It may have ``kind``, ``caption`` (the true one, else the example's first) and
    ``valid``: where that is false the row is left out, so that checks by hand or by a model need no second file. Other
    columns, and rows of other examples, are ignored.

    Args:
      path: of the file. With ``{split}`` in it each split has its own; a file without is of the training split alone.
      kinds: those that are taken; all if left out.
    """

    kinds: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositivesTable(TextTable):
    """A file of further true captions, such as analogies and rewrites: parquet, jsonl, csv or tsv.

    A row has ``key`` (or ``id``), which names the example, and ``positive``, another caption of it; in jsonl and
    parquet also a list of them. Where ``valid`` is false the row is left out. Other columns are ignored.

    Args:
      path: of the file. With ``{split}`` in it each split has its own; a file without is of the training split alone.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig(TextTable):
    """A folder of embeddings that ``mmjax embed --kind=both`` wrote of this data, for the objective ``distill``.

    Args:
      path: of the folder. With ``{split}`` in it each split has its own; one without is of the training split alone.
    """
