"""The examples that could not be used: counted by reason, listed by key, and too many of them end the run."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from mmjax.core.config import ConfigError
from mmjax.data.sample import DataError
from mmjax.data.source import Source, UnreadableEntry
from mmjax.parallel import collectives
from mmjax.runs.jsonl import LineFile

FILE = "unreadable.jsonl"
_FILES = "unreadable*.jsonl"
_SEEN_AT_LEAST = 1000  # before so many rows a share says little


class TooManyUnreadable(DataError):
    """More than the limit; of several processes all raise it at the same step."""


class Skips:
    """Keeps ``workdir/unreadable.jsonl``: one line for each example that could not be used.

    ``limit`` is the share of rows that may be skipped; among the first 1,000 rows that share of 1,000. Each
    ``process`` of ``processes`` reads one of the ``shares`` of the rows (fewer than processes where several hold the
    same), and all but the first have files of their own beside it; the limit holds for all of them together.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        limit: float,
        process: int = 0,
        processes: int = 1,
        shares: int = 1,
    ):
        self._path = Path(workdir) / (f"unreadable.{process}.jsonl" if process else FILE)
        self._file = LineFile(self._path)
        self._limit = limit
        self._listed = {entry["key"] for entry in read(workdir)}
        self._rows = 0
        self._processes = processes
        self._shares = shares
        self.reasons: collections.Counter[str] = collections.Counter()

    @property
    def count(self) -> int:
        """How many of this process's rows had to be drawn again since its start."""
        return sum(self.reasons.values())

    @property
    def shared(self) -> bool:
        """Whether other processes have skipped rows, too, so that ``count`` is not all."""
        return self._processes > 1

    def total(self) -> jax.Array:
        """The sum of all processes' counts, on its way, so that none waits; all must ask for it at the same step."""
        return collectives.all_sum(self.count)

    def of_rows(self, total: int) -> int:
        """How many rows a sum over all processes means, of which several may have read the same."""
        return total * self._shares // self._processes

    def list(self, step: int, skipped: Iterable[UnreadableEntry]) -> None:
        """Writes down those that are not listed yet."""
        for key, reason, detail in skipped:
            if key not in self._listed:
                self._listed.add(key)
                self._file.write(json.dumps({"step": step, "key": key, "reason": reason, "detail": detail}))

    def count_batch(self, step: int, skipped: Sequence[UnreadableEntry], *, rows: int) -> None:
        """Takes what was skipped while a batch of ``rows`` was made; raises TooManyUnreadable where it has become so.

        Of several processes none knows that alone: they ``check`` the ``total`` now and then.
        """
        self._rows += rows
        if not skipped:
            return
        self.list(step, skipped)
        self.reasons.update(reason for _, reason, _ in skipped)
        if not self.shared:
            self.check(self.count, step=step)

    def check(self, count: int, *, step: int) -> None:
        """Raises TooManyUnreadable where ``count``, of all rows, is more than the limit allows."""
        rows = self._rows * self._shares
        if count > self._limit * max(rows, _SEEN_AT_LEAST):
            reasons = f"of this process's {self.summary() or 'none'}" if self.shared else self.summary()
            raise TooManyUnreadable(
                f"{count} of the {rows} rows up to step {step} could not be used ({reasons}), more "
                f"than data.max_unreadable={self._limit} allows; they are listed in {self._path}"
            )

    def gather(self) -> None:
        """Adds what the other processes have skipped, once and at the end; all must do so."""
        if self.shared:
            total = sum(map(collections.Counter, collectives.all_gather(self.reasons)), collections.Counter[str]())
            self.reasons = collections.Counter({reason: self.of_rows(count) for reason, count in total.items()})

    def summary(self) -> str:
        """``3 truncated image, 1 missing file``."""
        return summary(self.reasons)


def summary(reasons: collections.Counter[str]) -> str:
    """The counts in words, the most frequent first."""
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())


def check_index(source: Source, *, limit: float) -> list[UnreadableEntry]:
    """What the source left out when it was opened; raises where that is too much to go on."""
    left_out = list(source.unreadable)
    total = len(left_out) + len(source)
    if len(left_out) > limit * max(total, _SEEN_AT_LEAST):
        key, reason, detail = left_out[0]
        raise ConfigError(
            f"data.max_unreadable={limit}: {len(left_out):,} of the source's {total:,} examples cannot be used "
            f"({summary(collections.Counter(reason for _, reason, _ in left_out))}), the first one {key}: {reason} "
            f"{detail}; repair them (`mmjax data inspect` lists them) or allow more"
        )
    return left_out


def read(workdir: str | Path) -> list[dict[str, Any]]:
    """The lines of ``unreadable.jsonl``, with whatever cannot be read left out; empty if there is no file.

    Where a run has several such files, what more than one of them lists is there once.
    """
    entries: dict[str, dict[str, Any]] = {}
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(Path(workdir).glob(_FILES))]
    for text in "\n".join(texts).splitlines():
        try:
            entry = json.loads(text)
            read = {"step": int(entry["step"])} | {k: str(entry[k]) for k in ("key", "reason", "detail")}
            entries.setdefault(str(read["key"]), read)
        except (ValueError, TypeError, KeyError):
            continue  # torn by a kill
    return list(entries.values())
