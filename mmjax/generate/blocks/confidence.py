"""Takes out made pictures that teach a classifier nothing, or wrong (ALIA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.block import Tools


class Block(block.GlobalBlock):
    """Drops by predictions of the stage ``classify`` and thresholds t_y, the mean of p(y) over originals of class y.

    With the prediction and its probability p (Dunlap et al. 2023, arXiv:2305.16289, and confident learning)::

        too easy     prediction == y and p > t_y
        mislabeled   prediction != y and p > t_y

    Of a class without originals nothing is dropped.
    """

    decides = True

    def collect(self, record: Record) -> Any:
        """Class and p(y) of originals."""
        own = record.fields.get("self_confidence")
        return None if record.parent_id or own is None else [record.fields["class_name"], own]

    def decide(self, values: Sequence[Any], tools: Tools) -> Any:
        """t by class."""
        by_class: dict[str, list[float]] = {}
        for name, own in values:
            by_class.setdefault(name, []).append(own)
        return {name: sum(several) / len(several) for name, several in sorted(by_class.items())}

    def apply(self, records: Sequence[Record], decision: Any, tools: Tools) -> list[block.Result]:
        """The records, some of them dropped."""
        for record in records:
            if "confidence" in record.fields:
                record.scores["confidence"] = record.fields["confidence"]
            threshold = decision.get(record.fields.get("class_name"))
            if not record.parent_id or threshold is None or "confidence" not in record.fields:
                continue
            if record.fields["confidence"] > threshold:
                is_right = record.fields["predicted"] == record.fields["class_name"]
                record.drop(f"confidence: {'too easy' if is_right else 'mislabeled'}")
        return list(records)
