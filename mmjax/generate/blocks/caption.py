"""A captioner describes each picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from mmjax.core.config import Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.backend import Captioner, Decoding, Failure
from mmjax.generate.block import Tools


class Block(block.RecordBlock):
    """Adds ``n`` captions of the picture to each record.

    Args:
      model: the captioner's name.
      n: captions a picture.
      source: what they are called in the record.
      prompt: how each caption begins, or what the captioner is asked; None leaves it to the model.
      replace: whether they take the place of the captions that are there.
      temperature: of sampling; 0 is greedy. None leaves this and the following to the model.
      top_k: the most likely tokens that are sampled from.
      top_p: the probability of those.
      min_tokens: the shortest caption.
      max_tokens: the longest.
      beams: of beam search.
    """

    def __init__(
        self,
        *,
        model: str = "captioner",
        n: Annotated[int, Ge(1)] = 1,
        source: str = "caption",
        prompt: str | None = None,
        replace: bool = False,
        temperature: Annotated[float, Ge(0)] | None = None,
        top_k: Annotated[int, Ge(1)] | None = None,
        top_p: float | None = None,
        min_tokens: int | None = None,
        max_tokens: int | None = None,
        beams: int | None = None,
    ):
        self.uses = {model: Captioner}
        self._model, self._source, self._prompt, self._replace = model, source, prompt, replace
        self._decoding = Decoding(n, temperature, top_k, top_p, min_tokens, max_tokens, beams)

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records with their captions."""
        captioner: Captioner = tools.model(self._model)
        seeds = [tools.seed(record) for record in records]
        answers = captioner.caption(
            [tools.picture(record) for record in records], [self._prompt] * len(records), self._decoding, seeds
        )

        def use(record: Record, answer: list[str]) -> block.Result | None:
            texts = [text for text in (" ".join(text.split()) for text in answer) if text]
            if not texts:
                return Failure("the captioner returned nothing")
            seed = tools.seed(record)
            by = tools.origin(record, captioner, seed=seed, prompt=self._prompt, **block.set_fields(self._decoding))
            new = [{"text": text, "source": self._source, "weight": 1.0, "by": by} for text in texts]
            record.captions = new if self._replace else [*record.captions, *new]
            return None

        return block.ask(records, answers, use)
