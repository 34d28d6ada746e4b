"""A captioner writes sentences in which the names of the data's captions occur, marked with their kinds (GMDA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from mmjax.core.config import Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block, parsers
from mmjax.generate.backend import Captioner, Decoding, Entity, EntityTagger, Failure
from mmjax.generate.block import Estimate, Tools
from mmjax.generate.prompt import load_prompt


class Block(block.RecordBlock):
    """Adds ``n`` captions (source ``caption``) with ``entities``, lists of begin, end and kind (GMDA, ACM MM 2024).

    The tagger finds the names in the first caption; the captioner, one that follows instructions, gets them.
    Replies without marked names are left out. A record without names, or without any good reply, is dropped.

    Args:
      model: the captioner's name.
      tagger: the entity tagger's name.
      prompt: one of ``mmjax/generate/prompts``, or a path.
      n: sentences a picture.
      temperature: of sampling.
      top_k: the most likely tokens, of which ``top_p`` takes its part.
      top_p: the probability of the tokens that are sampled from.
      max_tokens: of a sentence.
    """

    def __init__(
        self,
        *,
        model: str = "captioner",
        tagger: str = "tagger",
        prompt: str = "gmda_caption",
        n: Annotated[int, Ge(1)] = 3,
        temperature: Annotated[float, Ge(0)] | None = None,
        top_k: Annotated[int, Ge(1)] | None = 50,
        top_p: float | None = 0.9,
        max_tokens: int | None = 60,
    ):
        self.uses = {tagger: EntityTagger, model: Captioner}
        self._model, self._tagger = model, tagger
        self._prompt = load_prompt(prompt)
        self.prompts = [self._prompt]
        self._decoding = Decoding(n, temperature=temperature, top_k=top_k, top_p=top_p, max_tokens=max_tokens)

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records with their sentences."""
        captioner: Captioner = tools.model(self._model)
        tagger: EntityTagger = tools.model(self._tagger)
        texts = [block.first_caption(record) for record in records]
        names = tagger.entities(texts)
        results: dict[str, block.Result] = {}
        asked = []
        for record, text, entities in zip(records, texts, names, strict=True):
            if isinstance(entities, Failure):
                results[record.id] = entities
            elif not entities:
                results[record.id] = Failure("no names in the caption")
            else:
                asked.append((record, self._prompt.fill(entities=label(text, entities)).messages[-1].text))
        answers = captioner.caption(
            [tools.picture(record) for record, _ in asked], [text for _, text in asked], self._decoding,
            [tools.seed(record) for record, _ in asked],
        )  # fmt: skip

        def use(record: Record, replies: list[str]) -> block.Result | None:
            by = tools.origin(
                record, captioner, seed=tools.seed(record), prompt_sha=self._prompt.sha,
                **block.set_fields(self._decoding),
            )  # fmt: skip
            for parsed in filter(None, map(parsers.labeled_sentence, replies)):
                entities = [list(entity) for entity in parsed[1]]
                record.captions.append(
                    {"text": parsed[0], "source": "caption", "weight": 1.0, "by": by, "entities": entities}
                )
            return None if any("entities" in c for c in record.captions) else Failure("no reply has marked names")

        done = block.ask([record for record, _ in asked], answers, use)
        results |= dict(zip((record.id for record, _ in asked), done, strict=True))
        return [results[record.id] for record in records]

    def estimate(self, records: int) -> Estimate:
        """A request a record to both."""
        return Estimate({self._tagger: records, self._model: records}, records)


def label(text: str, entities: Sequence[Entity]) -> str:
    """The names with their kinds, from left to right: ``Ada (PERSON), Paris (PLACE)``."""
    return ", ".join(f"{text[entity.start : entity.end]} ({entity.kind})" for entity in entities)
