"""A teacher asks and answers questions about pictures (SelTDA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from mmjax.core.config import Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block, parsers
from mmjax.generate.backend import Captioner, Decoding, Failure
from mmjax.generate.block import Tools


class Block(block.RecordBlock):
    """Adds questions and answers to ``qa`` (SelTDA, Khan et al. 2023, arXiv:2306.03932).

    The captioner is a teacher that was trained on a small set of questions to continue ``Question:``. Texts without a
    question or an answer are left out, as are answers with yes and no, and questions that are there already; a record
    without any is dropped.

    Args:
      model: the captioner's name.
      n: texts a picture.
      prompt: how each begins.
      top_p: the probability of the tokens that are sampled from.
      min_tokens: the shortest text.
      max_tokens: the longest.
    """

    def __init__(
        self,
        *,
        model: str = "captioner",
        n: Annotated[int, Ge(1)] = 2,
        prompt: str = "Question:",
        top_p: float | None = 0.9,
        min_tokens: int | None = 5,
        max_tokens: int | None = 30,
    ):
        self.uses = {model: Captioner}
        self._model, self._prompt = model, prompt
        self._decoding = Decoding(n, top_p=top_p, min_tokens=min_tokens, max_tokens=max_tokens)

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records with their questions."""
        teacher: Captioner = tools.model(self._model)
        answers = teacher.caption(
            [tools.picture(record) for record in records], [self._prompt] * len(records), self._decoding,
            [tools.seed(record) for record in records],
        )  # fmt: skip

        def use(record: Record, texts: list[str]) -> block.Result | None:
            by = tools.origin(
                record, teacher, seed=tools.seed(record), prompt=self._prompt, **block.set_fields(self._decoding)
            )
            for text in texts:
                begun = text if text.lower().lstrip().startswith("question") else f"{self._prompt} {text}"
                pair = parsers.question_and_answer(begun)
                if pair is not None and pair[0] not in {one["q"] for one in record.qa}:
                    record.qa.append({"q": pair[0], "a": pair[1], "by": by})
            return None if record.qa else Failure("no text has a question and an answer")

        return block.ask(records, answers, use)
