"""A student answers questions by each explanation (T-SciQ)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from mmjax.core.config import Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block, parsers
from mmjax.generate.backend import Decoding, Failure, Writer
from mmjax.generate.block import Estimate, Tools
from mmjax.generate.blocks.rationales import blanks
from mmjax.generate.prompt import load_prompt


class Block(block.RecordBlock):
    """Puts into each explanation's caption whether the student's answer by it is ``right``; others are wrong.

    Args:
      model: the student, a writer's name.
      prompt: one of ``mmjax/generate/prompts``, or a path.
      splits: records of other splits are not asked about; all if left out.
      temperature: of sampling.
      max_tokens: of an answer.
    """

    def __init__(
        self,
        *,
        model: str = "student",
        prompt: str = "tsciq_answer",
        splits: tuple[str, ...] = (),
        temperature: Annotated[float, Ge(0)] | None = 0.0,
        max_tokens: int | None = 32,
    ):
        self.uses = {model: Writer}
        self._model, self._splits = model, splits
        self._prompt = load_prompt(prompt)
        self.prompts = [self._prompt]
        self._decoding = Decoding(temperature=temperature, max_tokens=max_tokens)

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records with the student's answers."""
        student: Writer = tools.model(self._model)
        asked = [
            (record, caption, record.qa[caption["question"]])
            for record in records
            if not self._splits or record.split in self._splits
            for caption in record.captions
            if "method" in caption
        ]
        requests = [self._prompt.fill(**{**blanks(one), "rationale": caption["text"]}) for _, caption, one in asked]
        seeds = [tools.seed(record, caption["method"], caption["question"]) for record, caption, _ in asked]
        for (_, caption, one), reply in zip(asked, student.write(requests, self._decoding, seeds), strict=True):
            chosen = None if isinstance(reply, Failure) else parsers.choice(reply[0], [str(c) for c in one["choices"]])
            caption["right"] = chosen == str(one["a"])
        return list(records)

    def estimate(self, records: int) -> Estimate:
        """A request for each of two explanations."""
        return Estimate({self._model: 2 * records}, records)
