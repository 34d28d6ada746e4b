"""Easy data augmentation of texts (Wei & Zou 2019, arXiv:1901.11196): four edits of words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data import lookup
from mmjax.data.sample import Sample
from mmjax.data.transforms.base import Stage

_CORE = re.compile(r"\w(?:.*\w)?", re.DOTALL)  # a word without the punctuation around it

Edit = Callable[[list[str], np.random.Generator], list[str]]


class Transform:
    """Changes a caption by one edit, each of those that are on as likely; l words, n = max(1, ⌊α l⌋) of them:

    replacement  n words that have synonyms become one of them
    insertion    n times a synonym of one of the caption's words is put at a random place
    swap         n times two words change places
    deletion     each word goes with probability α; one stays, whichever it is

    The first two need the user's table, and are off without one; the paper takes WordNet and passes over stop words,
    which a table leaves out. Where an edit finds nothing to do the caption stays as it is, and no caption becomes
    empty. Words are what white space parts; runs of it become one space. An edit knows no meaning: exchanging "left"
    and "right", or deleting "no", makes a false caption.

    Args:
      probability: that a caption is edited at all.
      synonyms: csv, tsv or jsonl table of ``word`` and ``synonym``; several rows of a word, or a list in jsonl.
      replace: α of replacement; 0 leaves an edit out. Not given, it is 0.1 with a table.
      insert: α of insertion, as for ``replace``.
      swap: α of swaps.
      delete: α of deletion.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(
        self,
        *,
        probability: float = 0.5,
        synonyms: str | None = None,
        replace: float | None = None,
        insert: float | None = None,
        swap: float = 0.1,
        delete: float = 0.1,
    ):
        for name, value in (("replace", replace), ("insert", insert)):
            if synonyms is None and value:
                raise ConfigError(f"{name}={value}: needs a table of synonyms; set synonyms, or leave {name} out")
        default = 0.0 if synonyms is None else 0.1
        self._replace, self._insert = (default if value is None else value for value in (replace, insert))
        self._swap, self._delete = swap, delete
        alphas = {"replace": self._replace, "insert": self._insert, "swap": swap, "delete": delete}
        for name, value in {"probability": probability, **alphas}.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"{name}={value}: set it between 0 and 1")
        if not any(alphas.values()):
            raise ConfigError("replace=0, insert=0, swap=0, delete=0: no edit is left; set one above 0")
        self._probability = probability
        self._synonyms = {} if synonyms is None else _synonyms(synonyms)

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample with some of its captions edited."""
        edits: list[Edit] = []
        for edit, alpha in (
            (self.replaced, self._replace),
            (self.inserted, self._insert),
            (self.swapped, self._swap),
            (self.deleted, self._delete),
        ):
            if alpha > 0:
                edits.append(edit)
        captions = []
        for caption in sample.captions:
            words = caption.split()
            if random.random() < self._probability and words:
                caption = " ".join(edits[int(random.integers(len(edits)))](words, random))
            captions.append(caption)
        return dataclasses.replace(sample, captions=captions)

    def replaced(self, words: list[str], random: np.random.Generator) -> list[str]:
        """Some words exchanged for synonyms; the punctuation around them stays."""
        known = [place for place, word in enumerate(words) if self._of(word)]
        out = list(words)
        for at in random.permutation(len(known))[: _count(self._replace, words)].tolist():
            place = known[at]
            synonym = self._of(words[place])[int(random.integers(len(self._of(words[place]))))]
            out[place] = _CORE.sub(lambda _, new=synonym: new, words[place], count=1)  # type: ignore[misc]
        return out

    def inserted(self, words: list[str], random: np.random.Generator) -> list[str]:
        """Synonyms of some words at random places."""
        known = [self._of(word) for word in words if self._of(word)]
        out = list(words)
        for _ in range(_count(self._insert, words) if known else 0):
            synonyms = known[int(random.integers(len(known)))]
            out.insert(int(random.integers(len(out) + 1)), synonyms[int(random.integers(len(synonyms)))])
        return out

    def swapped(self, words: list[str], random: np.random.Generator) -> list[str]:
        """Pairs of words exchanged."""
        out = list(words)
        for _ in range(_count(self._swap, words) if len(words) > 1 else 0):
            a, b = random.choice(len(out), 2, replace=False).tolist()
            out[a], out[b] = out[b], out[a]
        return out

    def deleted(self, words: list[str], random: np.random.Generator) -> list[str]:
        """Some words left out, never all."""
        stays = random.random(len(words)) >= self._delete
        stays[int(random.integers(len(words)))] |= not stays.any()
        return [word for word, stay in zip(words, stays.tolist(), strict=True) if stay]

    def _of(self, word: str) -> list[str]:
        core = _CORE.search(word)
        return self._synonyms.get(core[0].casefold(), []) if core else []


def _count(alpha: float, words: list[str]) -> int:
    return max(1, int(alpha * len(words)))


def _synonyms(path: str) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    for number, row in lookup.rows(path, option="synonyms"):
        where = f"synonyms={path!r}: line {number}"
        word = lookup.text_of(lookup.field(row, "word", where=where), where=where)
        value = lookup.field(row, "synonym", where=where)
        for synonym in value if isinstance(value, list) else [value]:
            text = lookup.text_of(synonym, where=where).replace("_", " ")
            if not word or not text.strip():
                raise ConfigError(f"{where}: an empty word; correct that line")
            if text.casefold() != word.casefold():
                found.setdefault(word.casefold(), {})[text] = None
    if not found:
        raise ConfigError(f"synonyms={path!r}: holds no synonyms; check the file")
    return {word: list(synonyms) for word, synonyms in found.items()}
