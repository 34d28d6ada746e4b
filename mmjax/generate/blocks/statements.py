"""Questions and answers become captions, and wrong answers negatives (SelTDA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from mmjax.core.config import Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.block import Tools
from mmjax.generate.statement import kind_of, statement


class Block(block.GlobalBlock):
    """Adds a caption (source ``qa``) for each question, and that with another answer as a negative of kind ``other``.

    Yes and no are each other's wrong answer. Other wrong answers are those that questions beginning with the same three
    words have in the data; a question whose answer is the only one gets no negative.

    Args:
      answers: different ones that are kept for each kind of question, the first ones.
    """

    def __init__(self, *, answers: Annotated[int, Ge(2)] = 100):
        self._answers = answers

    def collect(self, record: Record) -> Any:
        """Kinds of questions, and answers."""
        return [[kind_of(one["q"]), one["a"].lower()] for one in record.qa] or None

    def decide(self, values: Sequence[Any], tools: Tools) -> Any:
        """The answers to each kind."""
        known: dict[str, list[str]] = {}
        for kind, answer in (pair for pairs in values for pair in pairs):
            answers = known.setdefault(kind, [])
            if answer not in answers and len(answers) < self._answers:
                answers.append(answer)
        return known

    def apply(self, records: Sequence[Record], decision: Any, tools: Tools) -> list[block.Result]:
        """The records with statements."""
        for record in records:
            for number, one in enumerate(record.qa):
                origin = {"by": one["by"]} if "by" in one else {}
                text = statement(one["q"], one["a"])
                record.captions.append({"text": text, "source": "qa", "weight": 1.0, **origin})
                swapped = {"yes": "no", "no": "yes"}.get(one["a"].lower())
                others = [a for a in decision.get(kind_of(one["q"]), ()) if a not in (one["a"].lower(), "yes", "no")]
                if swapped is not None or others:
                    random = np.random.default_rng(tools.seed(record, number))
                    wrong = statement(one["q"], swapped or others[int(random.integers(len(others)))])
                    place = len(record.captions) - 1
                    record.negatives.append({"text": wrong, "kind": "other", "of": place, **origin})
        return list(records)
