"""Keeps a random part of the records that were made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from mmjax.core.config import Between, ConfigError, Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.block import Tools


class Block(block.GlobalBlock):
    """Keeps at most ``most`` records, or ``ratio`` made ones for each original; the others are dropped.

    Which ones depends on the seed and their ids alone.

    Args:
      most: records at most, made ones alone if ``originals`` is true.
      ratio: of made records to originals (PromptMix's mix, with another seed for each epoch).
      originals: whether originals are kept in any case.
    """

    decides = True

    def __init__(
        self,
        *,
        most: Annotated[int, Ge(1)] | None = None,
        ratio: Annotated[float, Between(0, 1000)] | None = None,
        originals: bool = True,
    ):
        if (most is None) == (ratio is None):
            raise ConfigError(f"most={most}: set it, or ratio, and not both")
        self._most, self._ratio, self._originals = most, ratio, originals

    def collect(self, record: Record) -> Any:
        """Id, and whether it is an original."""
        return [record.id, not record.parent_id]

    def decide(self, values: Sequence[Any], tools: Tools) -> Any:
        """Ids of those that are dropped."""
        made = [name for name, original in values if not original or (self._ratio is None and not self._originals)]
        count = sum(original for _, original in values)
        most = self._most if self._most is not None else math.floor((self._ratio or 0.0) * count)
        ranked = sorted(made, key=lambda name: (tools.seed(Record(id=name)), name))
        return sorted(ranked[most:])

    def apply(self, records: Sequence[Record], decision: Any, tools: Tools) -> list[block.Result]:
        """The records, some of them dropped."""
        dropped = set(decision)
        for record in records:
            if record.id in dropped:
                record.drop("take: more than asked for")
        return list(records)
