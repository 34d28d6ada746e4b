"""Units of captions with foils: entities and relations, each with a false version of itself (CS-CLIP).

Half-truths break similarity-based retrieval (Kargi et al. 2026, arXiv:2602.23906) lets a language model find them. Here
entities are noun phrases by parts of speech, and a relation is what stands between two neighboring ones, with both. The
foil of an entity has another word of a list (``rules``) or the noun of another entity of the caption; that of a
relation has the relation of another line of ``lists/relation.txt``, its two entities exchanged, or one of them false.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from mmjax.data.negatives.edits import fits
from mmjax.data.negatives.rules import replace_words
from mmjax.data.negatives.swaps import SYMMETRIC, Tagged

KINDS = ("entity", "relation")

_PHRASE = re.compile(r"(?:d[cjgv]*|[cj]*)[nN]+")
_LONGEST_RELATION = 5  # words
_LISTS = ("color", "material", "size", "state")
_PLACES = {"left", "right", "top", "bottom", "front", "back", "side", "middle", "center", "edge", "end", "corner"}
_BREAKS = {"and", "or", "but", "while", "as", "that", "which", "who"}

Span = tuple[int, int]


def find_units(
    caption: str, random: np.random.Generator, *, find_tags: Callable[[list[str]], Sequence[Sequence[str]]]
) -> list[tuple[str, str, list[str]]]:
    """The units of a caption as (kind, unit, foils), foils in random order; a unit may have none.

    Example::

        >>> tags = ["DT", "NN", "IN", "DT", "JJ", "NN"]  # what ``swaps.tagger`` finds
        >>> caption, random = "a cat behind a red mat", np.random.default_rng(0)
        >>> units = find_units(caption, random, find_tags=lambda words: list(zip(words, tags)))
        >>> [unit for _, unit, _ in units], "a red mat behind a cat" in units[2][2]
        (['a cat', 'a red mat', 'a cat behind a red mat'], True)
    """
    tagged = Tagged(caption, find_tags=find_tags)
    tokens, letters = tagged.tokens, "".join(token.letter for token in tagged.tokens)
    phrases = [match.span() for match in _PHRASE.finditer(letters)]
    phrases = [span for span in phrases if tokens[span[1] - 1].text.casefold() not in _PLACES]

    def text_of(first: int, last: int) -> str:
        return caption[tokens[first].start : tokens[last - 1].start + len(tokens[last - 1].text)]

    def shuffle(foils: list[str], unit: str) -> list[str]:
        others = sorted({foil for foil in foils if foil.casefold() != unit.casefold()})
        return [others[i] for i in random.permutation(len(others)).tolist()]

    entities = [text_of(*span) for span in phrases]
    nouns = [tokens[last - 1] for _, last in phrases]
    units, foils_of = [], []
    for number, entity in enumerate(entities):
        foils = [foil for kind in _LISTS if (foil := replace_words(entity, kind, random)) is not None]
        start = len(entity) - len(nouns[number].text)
        foils += [
            entity[:start] + noun.text
            for noun in nouns
            if noun.letter == nouns[number].letter and fits(entity, start, old=nouns[number].text, new=noun.text)
        ]
        foils_of.append(shuffle(foils, entity))
        units.append(("entity", entity, foils_of[-1]))
    for number in range(len(phrases) - 1):
        first, last = phrases[number][1], phrases[number + 1][0]
        between = [token.text.casefold() for token in tokens[first:last]]
        if not 0 < len(between) <= _LONGEST_RELATION or any(w in _BREAKS or not w[0].isalnum() for w in between):
            continue
        relation, (a, b) = text_of(first, last), entities[number : number + 2]
        foils = [f"{wrong} {relation} {b}" for wrong in foils_of[number][:1]]
        foils += [f"{a} {relation} {wrong}" for wrong in foils_of[number + 1][:1]]
        other = replace_words(relation, "relation", random)
        foils += [f"{a} {other} {b}"] if other is not None else []
        foils += [f"{b} {relation} {a}"] if not _is_symmetric(" ".join(between)) else []
        unit = f"{a} {relation} {b}"
        units.append(("relation", unit, shuffle(foils, unit)))
    return units


def _is_symmetric(relation: str) -> bool:
    return any(re.search(rf"(?<!\w){word}$", relation) for word in SYMMETRIC)
