"""Takes questions with choices from the fields of the data (T-SciQ)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.data.formats.generated_records import Record
from mmjax.data.scenes import graph
from mmjax.generate import block
from mmjax.generate.backend import Failure
from mmjax.generate.block import Tools
from mmjax.generate.scene_oracles.questions import question


class Block(block.RecordBlock):
    """Puts a question into ``qa``: ``q``, ``choices``, ``a`` (the right choice), ``context`` and ``skill``.

    Scenes of the procedural world get a question about their graph instead.

    Args:
      question: the field with the question.
      choices: the field with the list of choices.
      answer: the field with the right choice, or its number.
      context: the field with what one must know; may be missing.
      skill: the field that says what kind of question it is.
    """

    def __init__(
        self,
        *,
        question: str = "question",
        choices: str = "choices",
        answer: str = "answer",
        context: str = "hint",
        skill: str = "skill",
    ):
        self._fields = {"q": question, "choices": choices, "a": answer, "context": context, "skill": skill}

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records with their questions."""
        results: list[block.Result] = []
        for record in records:
            one: dict[str, Any] | None
            if "scene" in record.fields:
                scene, world = graph.from_json(record.fields["scene"])
                one = question(scene, world, np.random.default_rng(tools.seed(record)))
            else:
                one = self._read(record)
            if one is None:
                results.append(Failure(f"no question with choices in {', '.join(self._fields.values())}"))
                continue
            record.qa.append(one)
            results.append(record)
        return results

    def _read(self, record: Record) -> dict[str, Any] | None:
        one = {name: record.fields.get(field) for name, field in self._fields.items()}
        choices, answer = one["choices"], one["a"]
        if not isinstance(choices, list) or not one["q"] or not one["skill"]:
            return None
        if isinstance(answer, int) and 0 <= answer < len(choices):
            answer = choices[answer]
        return {**one, "a": answer, "context": one["context"] or ""} if answer in choices else None
