"""Concepts that are related to others: by which of WordNet's edges, at which distance, and in which words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.data import lookup
from mmjax.data.concepts.wordnet import WordNet


def find_related(wordnet: WordNet, word: str, *, up: int = 2, down: int = 2, senses: int = 1) -> dict[str, int]:
    """Other words and their distances: edges up to a more general meaning, and from there down again.

    Synonyms have distance 1, as a hypernym and a hyponym have. So siblings have 2: one edge up and one down.

    Args:
      wordnet: the graph.
      word: one of its nouns.
      up: the most edges up; CultureMixup goes up two.
      down: the most edges down.
      senses: meanings of the word, the most frequent first.
    """
    distance_of: dict[str, int] = {}
    for start in wordnet.senses(word)[:senses]:
        above = [start]
        for climbed in range(up + 1):
            level = above
            for fallen in range(down + 1):
                for synset in level:
                    for other in wordnet.synsets[synset].lemmas:
                        distance = max(climbed + fallen, 1)
                        if other.lower() != word and distance < distance_of.get(other, distance + 1):
                            distance_of[other] = distance
                level = [below for synset in level for below in wordnet.synsets[synset].hyponyms]
            above = [parent for synset in above for parent in wordnet.synsets[synset].hypernyms]
    return distance_of


def make_rows(
    wordnet: WordNet,
    nouns: Iterable[str],
    translations: Mapping[str, Sequence[str]] | None = None,
    *,
    max_distance: int,
    **options: int,
) -> Iterator[dict[str, Any]]:
    """Rows ``source``, ``target`` and ``distance`` of a table for ``culture_mixup``, the nearest first.

    Args:
      wordnet: the graph.
      nouns: of it.
      translations: of words; with them targets are translations, also of the source itself, at distance 0.
      max_distance: of a target.
      options: of ``find_related``.
    """
    for word in nouns:
        related = find_related(wordnet, word, **options)
        if translations is not None:
            translated: dict[str, int] = {}
            for other, distance in ({word: 0} | related).items():
                for text in translations.get(other.lower(), ()):
                    translated[text] = min(distance, translated.get(text, distance))
            related = translated
        for target, distance in sorted(related.items(), key=lambda item: (item[1], item[0])):
            if distance <= max_distance and target.lower() != word:
                yield {"source": word, "target": target, "distance": distance}


def read_translations(paths: Iterable[str], *, option: str) -> dict[str, list[str]]:
    """Translations by lower-case word, from tables with ``source`` and ``target``, as ``data fetch emoji`` writes."""
    targets: dict[str, list[str]] = {}
    for path in paths:
        for number, row in lookup.rows(path, option=option):
            where = f"{option}={path!r}: line {number}"
            pair = [
                lookup.text_of(lookup.field(row, name, where=where) or "", where=where) for name in ("source", "target")
            ]
            if all(pair):
                targets.setdefault(pair[0].lower(), []).append(pair[1])
    if not targets:
        raise ConfigError(f"{option}: holds no translations; check the files")
    return targets
