"""A writer explains right answers (T-SciQ)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from mmjax.core.config import Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.backend import Decoding, Failure, Writer
from mmjax.generate.block import Tools
from mmjax.generate.prompt import load_prompt

_END = " .!*\"'”’"  # may stand after the answer


class Block(block.RecordBlock):
    """Adds a caption (source ``detail``) with the explanation of each question's answer; ``method`` names its kind.

    An explanation that is empty, or does not end with the right answer, fails its record: later stages compare kinds.

    Args:
      method: what the explanation is called, ``cot`` or ``pcot``.
      prompt: one of ``mmjax/generate/prompts``, or a path; ``tsciq_`` and the method if left out.
      model: the writer's name.
      temperature: of sampling.
      max_tokens: of an explanation.
    """

    def __init__(
        self,
        *,
        method: str,
        prompt: str = "",
        model: str = "writer",
        temperature: Annotated[float, Ge(0)] | None = 0.0,
        max_tokens: int | None = 512,
    ):
        self.uses = {model: Writer}
        self._model, self._method = model, method
        self._prompt = load_prompt(prompt or f"tsciq_{method}")
        self.prompts = [self._prompt]
        self._decoding = Decoding(temperature=temperature, max_tokens=max_tokens)

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records with their explanations."""
        writer: Writer = tools.model(self._model)
        asked = [(row, number) for row, record in enumerate(records) for number in range(len(record.qa))]
        requests = [self._prompt.fill(**blanks(records[row].qa[number])) for row, number in asked]
        seeds = [tools.seed(records[row], number) for row, number in asked]
        failures: dict[int, Failure] = {}
        for (row, number), reply, seed in zip(asked, writer.write(requests, self._decoding, seeds), seeds, strict=True):
            text = "" if isinstance(reply, Failure) else " ".join(reply[0].split())
            one = records[row].qa[number]
            if not text.lower().rstrip(_END).endswith(str(one["a"]).lower().rstrip(_END)):
                failures[row] = reply if isinstance(reply, Failure) else Failure("the explanation ends elsewhere")
                continue
            by = tools.origin(records[row], writer, seed=seed, prompt_sha=self._prompt.sha, method=self._method)
            caption = {"text": text, "source": "detail", "weight": 1.0, "by": by}
            records[row].captions.append(caption | {"method": self._method, "question": number})
        return [failures.get(row, record) for row, record in enumerate(records)]


def blanks(one: dict[str, Any]) -> dict[str, Any]:
    """What the prompts about a question have as blanks."""
    choices = "; ".join(map(str, one["choices"]))
    texts = {"question": one["q"], "context": one["context"] or "none", "choices": choices}
    more = {"lecture": one.get("lecture", ""), "plan": one.get("plan", []), "skill": one["skill"]}
    return {**texts, "answer": one["a"], **more}
