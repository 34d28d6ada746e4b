"""Unreadable examples of a run: counted by reason, listed by key, and limited in number."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from mmjax.core.config import ConfigError
from mmjax.data.sample import DataError
from mmjax.data.source import Source, UnreadableEntry
from mmjax.parallel import collectives
from mmjax.runs.jsonl import JsonlWriter, read_jsonl

FILE = "unreadable.jsonl"
_FILES = "unreadable*.jsonl"
_MIN_ROWS = 1000  # the limit is applied to at least as many rows, because a fraction of fewer means little


class TooManyUnreadable(DataError):
    """More examples were unreadable than ``data.max_unreadable`` allows; every process raises this at the same step."""


class UnreadableExamples:
    """Lists each unreadable example once in ``workdir/unreadable.jsonl`` and checks the limit.

    Args:
      workdir: the run folder.
      limit: largest fraction of rows that may be unreadable, over all processes; of the first 1,000 rows, this
        fraction of 1,000.
      process: index of this process; all but the first write files of their own, ``unreadable.N.jsonl``.
      processes: number of processes.
      row_blocks: number of blocks that a batch's rows are split into (see ``RowBlock``); fewer than processes if
        several processes load the same rows.
    """

    def __init__(self, workdir: str | Path, *, limit: float, process: int = 0, processes: int = 1, row_blocks: int = 1):
        self._path = Path(workdir) / (f"unreadable.{process}.jsonl" if process else FILE)
        self._file = JsonlWriter(self._path)
        self._limit = limit
        self._listed = {entry["key"] for entry in read(workdir)}
        self._rows = 0
        self._processes = processes
        self._row_blocks = row_blocks
        self.reasons: collections.Counter[str] = collections.Counter()

    @property
    def count(self) -> int:
        """Number of rows that this process has replaced since its start."""
        return sum(self.reasons.values())

    @property
    def is_distributed(self) -> bool:
        """Whether ``count`` covers only some of the processes."""
        return self._processes > 1

    def total(self) -> jax.Array:
        """Returns the sum of all processes' counts asynchronously; all processes must call this at the same step."""
        return collectives.all_sum(self.count)

    def to_row_count(self, total: int) -> int:
        """Converts ``total``, in which rows that several processes load count several times, to a number of rows."""
        return total * self._row_blocks // self._processes

    def list(self, step: int, entries: Iterable[UnreadableEntry]) -> None:
        """Appends the entries that are not in the file yet."""
        for key, reason, detail in entries:
            if key not in self._listed:
                self._listed.add(key)
                self._file.write({"step": step, "key": key, "reason": reason, "detail": detail})

    def add_batch(self, step: int, entries: Sequence[UnreadableEntry], *, rows: int) -> None:
        """Counts the unreadable examples of a batch of ``rows`` rows; raises TooManyUnreadable above the limit.

        With several processes, ``check`` the ``total`` from time to time instead.
        """
        self._rows += rows
        if not entries:
            return
        self.list(step, entries)
        self.reasons.update(reason for _, reason, _ in entries)
        if not self.is_distributed:
            self.check(self.count, step=step)

    def check(self, count: int, *, step: int) -> None:
        """Raises TooManyUnreadable if ``count``, over all processes, exceeds the limit."""
        rows = self._rows * self._row_blocks
        if count > self._limit * max(rows, _MIN_ROWS):
            reasons = f"of this process's {self.summary() or 'none'}" if self.is_distributed else self.summary()
            raise TooManyUnreadable(
                f"{count} of the {rows} rows up to step {step} could not be used ({reasons}), more "
                f"than data.max_unreadable={self._limit} allows; they are listed in {self._path}"
            )

    def update_metrics(self, step: int, values: dict[str, float]) -> None:
        """Puts the count of all processes' rows into the metrics of a step; raises if it is above the limit."""
        count = self.count
        if self.is_distributed:
            count = self.to_row_count(int(values.pop("train/unreadable_examples", 0)))
            self.check(count, step=step)
        if count:
            values["train/unreadable_examples"] = count

    def gather(self) -> None:
        """Adds the counts of the other processes, once and at the end; all processes must call this."""
        if self.is_distributed:
            total = sum(map(collections.Counter, collectives.all_gather(self.reasons)), collections.Counter[str]())
            self.reasons = collections.Counter({reason: self.to_row_count(count) for reason, count in total.items()})

    def summary(self) -> str:
        """Returns the counts by reason, such as ``3 truncated image, 1 missing file``."""
        return format_counts(self.reasons)


def format_counts(reasons: collections.Counter[str]) -> str:
    """Formats counts by reason, the most frequent first."""
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())


def check_left_out(source: Source, *, limit: float) -> list[UnreadableEntry]:
    """Returns the examples that the source left out when it was opened; raises if they exceed the limit."""
    left_out = list(source.unreadable)
    total = len(left_out) + len(source)
    if len(left_out) > limit * max(total, _MIN_ROWS):
        key, reason, detail = left_out[0]
        counts = format_counts(collections.Counter(reason for _, reason, _ in left_out))
        raise ConfigError(
            f"data.max_unreadable={limit}: {len(left_out):,} of the source's {total:,} examples cannot be used "
            f"({counts}), the first one {key}: {reason} {detail}; repair them (`mmjax data inspect` lists them) or "
            "allow more"
        )
    return left_out


def read(workdir: str | Path) -> list[dict[str, Any]]:
    """Returns the readable lines of all ``unreadable*.jsonl`` files, one per key; empty if there is none."""
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(workdir).glob(_FILES)):
        for _, line in read_jsonl(path):
            try:
                entry = {"step": int(line["step"])} | {name: str(line[name]) for name in ("key", "reason", "detail")}
            except (ValueError, TypeError, KeyError):
                continue
            entries.setdefault(str(entry["key"]), entry)
    return list(entries.values())
