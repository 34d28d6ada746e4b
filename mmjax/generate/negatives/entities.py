"""Counterfactual captions: names are replaced by others that a masked language model proposes (CFT-CLIP)."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

import numpy as np

from mmjax.data.sample import Unreadable
from mmjax.generate.backend import Entity, EntityTagger, Failure, MaskFiller, Picture, Scorer
from mmjax.generate.negatives.makers import MASK, CaptionedExample, Row, draw_seed, fill_until, to_rows

KINDS = ("PERSON",)


class EntityMaker:
    """Masks names and fills them in (Yoon et al. 2024, arXiv:2402.11159), for the objective ``cft``.

    Of a caption's entities of ``kinds``, random ones are left out until the others have at most ``budget`` of its
    characters, spaces aside. Each becomes one mask, and the model draws at ``temperature``; a name of several words
    becomes one word. A result is kept as soon as it differs and, with a ``scorer``, the picture is less similar to it
    than to the caption; the paper's scorer is CLIP ViT-L/14.

    Args:
        tagger: Finds entities.
        filler: The masked language model.
        kinds: Of entities; the paper uses only PERSON.
        scorer: Judges captions by their picture; None: any other text is kept.
        picture: The picture of an example, by its place in the source; for the scorer.
        seed: Of all draws.
        budget: The largest fraction of a caption's characters.
        temperature: Of the model's draws.
        tries: Of each caption.
    """

    def __init__(
        self,
        tagger: EntityTagger,
        filler: MaskFiller,
        kinds: Sequence[str] = KINDS,
        *,
        scorer: Scorer | None = None,
        picture: Callable[[int], Picture] | None = None,
        seed: int,
        budget: float = 0.3,
        temperature: float = 2.0,
        tries: int = 10,
    ):
        self._tagger, self._filler, self._kinds = tagger, filler, tuple(kinds)
        self._scorer, self._picture = scorer, picture
        self._seed, self._budget, self._temperature, self._tries = seed, budget, temperature, tries
        self.failures: collections.Counter[str] = collections.Counter()

    def rows(self, examples: Sequence[CaptionedExample]) -> list[Row]:
        """The negatives of all examples."""
        pairs = [(e, caption) for e in examples for caption in e.captions if MASK not in caption]
        items, masked = [], []
        found_entities = self._tagger.entities([caption for _, caption in pairs]) if pairs else []
        for (example, caption), entities in zip(pairs, found_entities, strict=True):
            if isinstance(entities, Failure):
                self.failures[entities.reason] += 1
                continue
            chosen = self._choose(example.key, caption, entities)
            if chosen:
                kinds = "+".join(sorted({entity.kind.lower() for entity in chosen}))
                items.append((example, f"entity_{kinds}", caption))
                masked.append(mask_spans(caption, chosen))

        def seed(i: int, attempt: int) -> int:
            return draw_seed(self._seed, items[i][0].key, items[i][2], attempt)

        def accept(numbers: Sequence[int], texts: Sequence[str]) -> list[bool | Failure]:
            verdicts: list[bool | Failure] = [
                text.casefold() != items[i][2].casefold() for i, text in zip(numbers, texts, strict=True)
            ]
            if self._scorer is None or self._picture is None or not numbers:
                return verdicts
            pictures, asked = [], []
            for place, (i, text) in enumerate(zip(numbers, texts, strict=True)):
                try:
                    pictures.append(self._picture(items[i][0].place))
                    asked.append((place, (items[i][2], text)))
                except Unreadable as error:
                    verdicts[place] = Failure(f"the picture is unreadable: {error.reason}")
            scores = self._scorer.score(pictures, [pair for _, pair in asked])
            for (place, _), score in zip(asked, scores, strict=True):
                verdicts[place] = score if isinstance(score, Failure) else bool(verdicts[place] and score[1] < score[0])
            return verdicts

        results = fill_until(
            self._filler, masked, temperature=self._temperature, tries=self._tries, seed=seed, accept=accept
        )
        return to_rows("entity", items, results, self.failures)

    def _choose(self, key: str, caption: str, entities: Sequence[Entity]) -> list[Entity]:
        """Entities of ``kinds`` within the budget."""
        chosen = [entity for entity in entities if entity.kind in self._kinds]
        random = np.random.default_rng(draw_seed(self._seed, key, caption, "spans"))

        def size(entity: Entity) -> int:
            return sum(not c.isspace() for c in caption[entity.start : entity.end])

        while chosen and sum(map(size, chosen)) > int(self._budget * len(caption)):
            chosen.pop(int(random.integers(len(chosen))))
        return chosen


def mask_spans(caption: str, entities: Sequence[Entity]) -> str:
    """The caption with one mask in the place of each entity.

    Example::

        >>> mask_spans("Ada Lovelace meets Bob.", [Entity(0, 12, "PERSON"), Entity(19, 22, "PERSON")])
        '[MASK] meets [MASK].'
    """
    for entity in sorted(entities, reverse=True):  # from the right, so that the places of the others stay
        caption = caption[: entity.start] + MASK + caption[entity.end :]
    return caption
