"""A writer talks about pictures of which it gets captions and boxes alone (LLaVA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from mmjax.core.config import Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block, parsers
from mmjax.generate.backend import Decoding, Failure, Writer
from mmjax.generate.block import Tools
from mmjax.generate.prompt import load_prompt


class Block(block.RecordBlock):
    """Adds what the writer replies in one of LLaVA's three roles (Liu et al. 2023, arXiv:2304.08485).

    ``conversation`` and ``reasoning`` add questions and answers to ``qa``, ``detail`` a caption of source ``detail``;
    all add a dialog about the picture (``sees``) to ``fields["turns"]``. A reply that is not as asked for, too short,
    or that speaks of captions and bounding boxes fails its record, unless a stage before has a reply in another role.

    Args:
      role: which.
      model: the writer's name.
      prompt: one of ``mmjax/generate/prompts``, or a path; ``llava_`` and the role if left out.
      count: questions of a conversation.
      min_words: of an answer, or of the description, together.
      temperature: of sampling.
      max_tokens: of a reply.
    """

    def __init__(
        self,
        *,
        role: Literal["conversation", "detail", "reasoning"],
        model: str = "writer",
        prompt: str = "",
        count: Annotated[int, Ge(1)] = 3,
        min_words: Annotated[int, Ge(0)] = 3,
        temperature: Annotated[float, Ge(0)] | None = 0.7,
        max_tokens: int | None = 512,
    ):
        self.uses = {model: Writer}
        self._model, self._role, self._count, self._min_words = model, role, count, min_words
        self._prompt = load_prompt(prompt or f"llava_{role}")
        self.prompts = [self._prompt]
        self._decoding = Decoding(temperature=temperature, max_tokens=max_tokens)

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records with replies."""
        writer: Writer = tools.model(self._model)
        requests = [
            self._prompt.fill(captions=[c["text"] for _, c in block.captions(r, ("raw",))], boxes=box_lines(r),
                              count=self._count)
            for r in records
        ]  # fmt: skip
        replies = writer.write(requests, self._decoding, [tools.seed(record) for record in records])
        results: list[block.Result] = []
        for record, reply in zip(records, replies, strict=True):
            failure = reply if isinstance(reply, Failure) else self._use(record, reply[0], writer, tools)
            results.append(record if failure is None or "turns" in record.fields else failure)
        return results

    def _use(self, record: Record, reply: str, writer: Writer, tools: Tools) -> Failure | None:
        if parsers.leaks(reply):
            return Failure(f"the {self._role} speaks of captions or boxes")
        if not parsers.is_whole(reply):
            return Failure(f"the {self._role} is cut off or a refusal")
        pairs = parsers.turns(reply)
        if self._role == "detail":
            pairs = None if pairs is not None or not reply.strip() else [("", " ".join(reply.split()))]
        if pairs is None or sum(len(answer.split()) for _, answer in pairs) < self._min_words:
            return Failure(f"the {self._role} is not as asked for")
        by = tools.origin(record, writer, seed=tools.seed(record), prompt_sha=self._prompt.sha)
        asked = [(question or "Describe the picture in detail.", answer) for question, answer in pairs]
        record.fields.setdefault("turns", []).append(
            {"role": self._role, "turns": [list(pair) for pair in asked], "sees": True, "by": by}
        )
        record.qa += [{"q": question, "a": answer, "role": self._role, "by": by} for question, answer in asked]
        if self._role == "detail":
            record.captions.append({"text": pairs[0][1], "source": "detail", "weight": 1.0, "by": by})
        return None


def box_lines(record: Record) -> list[str]:
    """The boxes as lines of text: what, and its corners in fractions of the picture."""
    return [f"{box['phrase']}: [{', '.join(f'{value:.2f}' for value in box['box'])}]" for box in record.boxes]
