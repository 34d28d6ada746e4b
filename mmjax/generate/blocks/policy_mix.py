"""Chooses for each skill the kind of explanation by which a student makes fewer errors (T-SciQ)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.block import Tools


class Block(block.GlobalBlock):
    """Leaves each record the explanation of one method, by the errors of the stage ``answers`` on a validation split.

    ``first`` where ``second`` made strictly more errors of that skill, else ``second``; also for a skill that the
    validation split lacks. The paper's code counts errors on the test split, which is refused here.

    Args:
      split: whose errors decide.
      first: a method of the stage ``rationales``.
      second: the other one.
    """

    decides = True

    def __init__(self, *, split: str = "val", first: str = "cot", second: str = "pcot"):
        if split.casefold().startswith("test"):
            raise ConfigError(f"split={split!r}: what is tested on must not decide; use a validation split")
        self._split, self._first, self._second = split, first, second

    def collect(self, record: Record) -> Any:
        """Skill, method and error of validation records."""
        if record.split != self._split:
            return None
        rows = [
            (record.qa[c["question"]]["skill"], c["method"], not c["right"]) for c in record.captions if "right" in c
        ]
        return [list(row) for row in rows] or None

    def decide(self, values: Sequence[Any], tools: Tools) -> Any:
        """The method by skill, and the errors."""
        if not values:
            raise ConfigError(f"split={self._split!r}: no record of it has answers; give --split=train,{self._split}")
        errors: dict[str, dict[str, int]] = {}
        for skill, method, wrong in (row for rows in values for row in rows):
            counts = errors.setdefault(skill, {self._first: 0, self._second: 0})
            counts[method] = counts.get(method, 0) + wrong
        methods = {
            skill: self._first if counts[self._second] > counts[self._first] else self._second
            for skill, counts in sorted(errors.items())
        }
        return {"methods": methods, "errors": dict(sorted(errors.items()))}

    def apply(self, records: Sequence[Record], decision: Any, tools: Tools) -> list[block.Result]:
        """The records with one explanation each."""
        for record in records:
            for caption in record.captions:
                if "method" in caption:
                    skill = record.qa[caption["question"]]["skill"]
                    if caption["method"] != decision["methods"].get(skill, self._second):
                        caption["weight"] = 0.0
        return list(records)
