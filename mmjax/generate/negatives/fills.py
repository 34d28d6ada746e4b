"""Hard negatives by a masked language model: one word of a caption is masked, and filled in with another (CE-CLIP)."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmjax.data.negatives.across import KIND_OF_TAG, is_content
from mmjax.data.negatives.edits import fits
from mmjax.data.negatives.swaps import Tagged
from mmjax.generate.backend import MaskFiller
from mmjax.generate.negatives.makers import MASK, CaptionedExample, Row, draw_seed, fill_until, to_rows

KINDS = ("noun", "adjective", "verb", "preposition")


class FillMaker:
    """For each kind, masks a random word of that part of speech, and draws one from the model until it is another.

    CE-CLIP (Zhang et al. 2024, arXiv:2306.08832) takes the fourth of the model's five best words, which may be the true
    one again, and fills a lone mask where a caption has no word of a kind. SVLC (arXiv:2211.11733) draws among the
    best. CE-CLIP's fourth kind, two nouns exchanged, is ``mmjax data negatives --method=swap --kinds=noun``.

    Args:
        filler: The masked language model.
        find_tags: Parts of speech (``swaps.tagger``).
        kinds: Of words.
        seed: Of all draws.
        temperature: Of the model's draws.
        tries: Until a word is another.
    """

    def __init__(
        self,
        filler: MaskFiller,
        find_tags: Callable[[list[str]], Sequence[Sequence[str]]],
        kinds: Sequence[str] = KINDS,
        *,
        seed: int,
        temperature: float = 1.0,
        tries: int = 5,
    ):
        self._filler, self._find_tags, self._kinds = filler, find_tags, tuple(kinds)
        self._seed, self._temperature, self._tries = seed, temperature, tries
        self.failures: collections.Counter[str] = collections.Counter()

    def rows(self, examples: Sequence[CaptionedExample]) -> list[Row]:
        """The negatives of all examples."""
        items, masks = [], list[tuple[str, int, str]]()  # the caption, and the word that is masked
        for example in examples:
            for caption in example.captions:
                for kind, start, word in self._choose(example.key, caption):
                    items.append((example, f"fill_{kind}", caption))
                    masks.append((caption, start, word))

        def accept(numbers: Sequence[int], texts: Sequence[str]) -> list[bool]:
            return [_is_other(text, *masks[i]) for i, text in zip(numbers, texts, strict=True)]

        def seed(i: int, attempt: int) -> int:
            return draw_seed(self._seed, items[i][0].key, items[i][1], *masks[i], attempt)

        masked = [caption[:start] + MASK + caption[start + len(word) :] for caption, start, word in masks]
        limits: dict[str, Any] = {"temperature": self._temperature, "tries": self._tries}
        results = fill_until(self._filler, masked, seed=seed, accept=accept, **limits)
        return to_rows("mlm", items, results, self.failures)

    def _choose(self, key: str, caption: str) -> list[tuple[str, int, str]]:
        """For each kind that the caption has, its place and the word there."""
        if MASK in caption:
            return []
        random = np.random.default_rng(draw_seed(self._seed, key, caption, "words"))
        tokens = [token for token in Tagged(caption, find_tags=self._find_tags).tokens if is_content(token)]
        chosen = []
        for kind in self._kinds:
            places = [(token.start, token.text) for token in tokens if KIND_OF_TAG[token.tag] == kind]
            if places:
                chosen.append((kind, *places[int(random.integers(len(places)))]))
        return chosen


def _is_other(text: str, caption: str, start: int, word: str) -> bool:
    """Whether a fill has another whole word in that place, the rest as it was, and an article that goes with it."""
    head, tail = caption[:start], caption[start + len(word) :]
    new = text[len(head) : len(text) - len(tail)] if text.startswith(head) and text.endswith(tail) else ""
    return new.isalpha() and new.casefold() != word.casefold() and fits(caption, start, old=word, new=new)
