"""Reads the nouns of Princeton's WordNet from its own files, ``data.noun`` and ``index.noun``.

The format is that of the manual page wndb(5WN). WordNet is not in this package: it can be downloaded from Princeton,
and packages such as NLTK's data have it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmjax.core.config import ConfigError
from mmjax.data.concepts.function_words import FUNCTION_WORDS

_UP, _DOWN = ("@", "@i"), ("~", "~i")
# The manual's rules of detachment for nouns.
_PLURALS = (
    *(("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y")),
    ("s", ""),
)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_LONGEST = 4  # words of a concept that is looked for in captions


class Synset(NamedTuple):
    """Words of one meaning, and the places of more general and of more special meanings."""

    lemmas: tuple[str, ...]
    hypernyms: tuple[int, ...]
    hyponyms: tuple[int, ...]


class WordNet:
    """The nouns of a folder with ``data.noun`` and ``index.noun``.

    Args:
      folder: of the files, often called ``dict``.
    """

    def __init__(self, folder: str):
        self._path = folder
        self._senses = dict(self._lines("index.noun", _parse_index))
        self.synsets = dict(self._lines("data.noun", _parse_data))
        missing = next((s for senses in self._senses.values() for s in senses if s not in self.synsets), None)
        if missing is not None or not self._senses:
            raise ConfigError(f"--wordnet={folder}: index.noun and data.noun do not belong together; copy both again")

    def __contains__(self, word: str) -> bool:
        return word in self._senses

    @property
    def nouns(self) -> list[str]:
        """All of them, in lower case."""
        return list(self._senses)

    def senses(self, word: str) -> tuple[int, ...]:
        """The synsets of a noun, the most frequent meaning first."""
        return self._senses.get(word, ())

    def lemma(self, text: str) -> str | None:
        """The noun that a text is a form of: itself, or its singular."""
        word = " ".join(text.lower().split())
        forms = [word, *(word.removesuffix(end) + new for end, new in _PLURALS if word.endswith(end))]
        return next((form for form in forms if form in self), None)

    def nouns_in(self, text: str) -> Iterator[str]:
        """The nouns of a text from left to right, of several words where there are such; no function words."""
        tokens, place = _WORD.findall(text), 0
        while place < len(tokens):
            for count in range(min(_LONGEST, len(tokens) - place), 0, -1):
                text = " ".join(tokens[place : place + count])
                lemma = self.lemma(text)
                if lemma is not None and text.lower() not in FUNCTION_WORDS:
                    yield lemma
                    break
            place += count

    def _lines(self, name: str, parse: Any) -> Iterator[tuple[Any, Any]]:
        path = Path(self._path) / name
        try:
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if not line.startswith(" ") and line.strip():  # the license is indented
                        try:
                            yield parse(line.split())
                        except (ValueError, IndexError):
                            raise ConfigError(
                                f"--wordnet={self._path}: line {number} of {name} is not WordNet's; copy the file again"
                            ) from None
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"--wordnet={self._path}: {name} cannot be read ({reason}); name WordNet's folder dict"
            ) from None


def _parse_index(fields: list[str]) -> tuple[str, tuple[int, ...]]:
    """lemma pos synset_cnt p_cnt [symbol…] sense_cnt tagsense_cnt offset…"""
    count, pointers = int(fields[2]), int(fields[3])
    offsets = fields[6 + pointers :]
    if len(offsets) != count:
        raise ValueError("an offset is missing")
    return fields[0].replace("_", " ").lower(), tuple(map(int, offsets))


def _parse_data(fields: list[str]) -> tuple[int, Synset]:
    """offset lex_filenum ss_type w_cnt [word lex_id]… p_cnt [symbol offset pos source/target]… | gloss"""
    count = int(fields[3], 16)
    lemmas = tuple(fields[4 + 2 * i].replace("_", " ") for i in range(count))
    first = 4 + 2 * count
    pointers = [fields[first + 1 + 4 * i : first + 5 + 4 * i] for i in range(int(fields[first]))]
    nouns = [(symbol, int(offset)) for symbol, offset, part, _ in pointers if part == "n"]
    up, down = (tuple(offset for symbol, offset in nouns if symbol in symbols) for symbols in (_UP, _DOWN))
    return int(fields[0]), Synset(lemmas, up, down)
