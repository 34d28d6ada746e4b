"""Counterfactual captions: names exchanged for others that fit the picture less (CFT-CLIP)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from mmjax.core.config import Between, Ge, Gt
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block
from mmjax.generate.backend import Entity, EntityTagger, Failure, MaskFiller, Picture, Scorer
from mmjax.generate.block import Estimate, Tools

MASK = "[MASK]"


@dataclasses.dataclass
class Search:
    """A caption, its masked form, and the wrong version that is looked for."""

    row: int
    number: int
    caption: str
    masked: str
    picture: Picture
    cosine: float = 0.0
    wrong: str | None = None
    wrong_cosine: float = 0.0
    seed: int = 0


class Block(block.RecordBlock):
    """Adds a negative to each caption with names (CFT-CLIP, Yoon et al. 2024, arXiv:2402.11159).

    Names of the wanted kinds are masked, without random ones until at most int(budget · characters without spaces) are;
    a masked language model fills in others at a high temperature, one word for each name, until the caption differs and
    its cosine with the picture is lower than the true one's. A caption without names, or for which no try succeeds,
    gets no negative. The paper's code keeps pieces of words as ``##ing``; here they are refused.

    Args:
      tagger: the entity tagger's name.
      filler: the mask filler's name.
      scorer: the scorer's name.
      kinds: of names.
      budget: the largest fraction of characters that is masked.
      temperature: of the mask filler.
      tries: for each caption.
    """

    def __init__(
        self,
        *,
        tagger: str = "tagger",
        filler: str = "mask_filler",
        scorer: str = "scorer",
        kinds: tuple[str, ...] = ("PERSON",),
        budget: Annotated[float, Between(0, 1)] = 0.3,
        temperature: Annotated[float, Gt(0)] = 2.0,
        tries: Annotated[int, Ge(1)] = 10,
    ):
        self.uses = {tagger: EntityTagger, filler: MaskFiller, scorer: Scorer}
        self._tagger, self._filler, self._scorer = tagger, filler, scorer
        self._kinds, self._budget, self._temperature, self._tries = set(kinds), budget, temperature, tries

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records with their negatives."""
        tagger: EntityTagger = tools.model(self._tagger)
        filler: MaskFiller = tools.model(self._filler)
        scorer: Scorer = tools.model(self._scorer)
        failures: dict[int, Failure] = {}
        searches = self._begin(records, tools, tagger.entities([t for r in records for t in r.texts]), failures)
        for search, cosines in zip(
            searches, scorer.score([s.picture for s in searches], [[s.caption] for s in searches]), strict=True
        ):
            if isinstance(cosines, Failure):
                failures[search.row] = cosines
            else:
                search.cosine = float(cosines[0])
        for attempt in range(self._tries):
            left = [search for search in searches if search.wrong is None and search.row not in failures]
            if not left:
                break
            seeds = [tools.seed(records[search.row], search.number, attempt) for search in left]
            filled = filler.fill([search.masked for search in left], self._temperature, seeds)
            tried = [
                (search, text, seed)
                for search, text, seed in zip(left, filled, seeds, strict=True)
                if not isinstance(text, Failure) and is_filled(search.masked, text) and text != search.caption
            ]
            scores = scorer.score([search.picture for search, *_ in tried], [[text] for _, text, _ in tried])
            for (search, text, seed), cosines in zip(tried, scores, strict=True):
                if not isinstance(cosines, Failure) and cosines[0] < search.cosine:
                    search.wrong, search.wrong_cosine, search.seed = text, float(cosines[0]), seed
        for search in searches:
            if search.wrong is not None and search.row not in failures:
                record = records[search.row]
                by = tools.origin(record, filler, seed=search.seed, temperature=self._temperature, tagger=tagger.model,
                                  scorer=scorer.model)  # fmt: skip
                scores_of = {"clip": search.wrong_cosine, "clip_true": search.cosine}
                record.negatives.append(
                    {"text": search.wrong, "kind": "entity", "of": search.number, "scores": scores_of, "by": by}
                )
        return [failures.get(row, record) for row, record in enumerate(records)]

    def _begin(
        self, records: Sequence[Record], tools: Tools, answers: Sequence[list[Entity] | Failure],
        failures: dict[int, Failure],
    ) -> list[Search]:  # fmt: skip
        searches = []
        remaining = iter(answers)
        for row, record in enumerate(records):
            picture = tools.picture(record)
            for number, text in enumerate(record.texts):
                answer = next(remaining)
                if isinstance(answer, Failure):
                    failures[row] = answer
                    continue
                random = np.random.default_rng(tools.seed(record, number, "names"))
                masked = mask([e for e in answer if e.kind in self._kinds], text, self._budget, random)
                if masked is not None:
                    searches.append(Search(row, number, text, masked, picture))
        return searches

    def estimate(self, records: int) -> Estimate:
        """The searches of all captions, one for each record, if each try is needed."""
        return Estimate(
            {self._tagger: records, self._filler: records * self._tries, self._scorer: records * (self._tries + 1)},
            records,
        )


def mask(entities: Sequence[Entity], text: str, budget: float, random: np.random.Generator) -> str | None:
    """The text with names masked, random ones left out until the budget holds; None if none is left."""
    most = int(budget * len("".join(text.split())))
    chosen = list(entities)
    while chosen and sum(len("".join(text[e.start : e.end].split())) for e in chosen) > most:
        chosen.pop(int(random.integers(len(chosen))))
    for entity in sorted(chosen, key=lambda e: -e.start):  # from the right, so that positions stay
        text = text[: entity.start] + MASK + text[entity.end :]
    return text if chosen else None


def is_filled(masked: str, text: str) -> bool:
    """Whether ``text`` is ``masked`` with one whole word for each mask, and nothing else changed."""
    word = r"(?!##)[^\s\[\]]+"
    return re.fullmatch(word.join(map(re.escape, masked.split(MASK))), text) is not None
