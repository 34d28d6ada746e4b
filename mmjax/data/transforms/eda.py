"""Easy data augmentation (EDA, arXiv:1901.11196): four random edits of a caption's words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data import lookup
from mmjax.data.sample import Sample
from mmjax.data.transforms.common.base import Fraction, Probability, Stage

_CORE = re.compile(r"\w(?:.*\w)?", re.DOTALL)  # a word without the punctuation around it

Edit = Callable[[list[str], np.random.Generator], list[str]]


class Transform:
    """Applies one edit to a caption, drawn uniformly from those with α > 0. Of l words it affects n = max(1, ⌊α l⌋):

    replacement  n words that have synonyms are replaced by one of them
    insertion    n synonyms of the caption's words are inserted at random places
    swap         n times, two words are swapped
    deletion     each word is deleted with probability α, but at least one word stays

    The first two need a table of synonyms. The paper uses WordNet and leaves stop words out; a table without stop words
    does the same. If an edit has nothing to do the caption stays as it is, and no caption becomes empty. Words are
    separated by white space, which becomes single spaces. Edits ignore meaning: swapping "left" and "right", or
    deleting "no", makes a caption false.

    Args:
      probability: of editing a caption.
      synonyms: csv, tsv or jsonl table of ``word`` and ``synonym``; several rows per word, or a list in jsonl.
      replace: α of replacement, 0 to disable it. Default: 0.1 with a table, else 0.
      insert: α of insertion, with the same default.
      swap: α of swaps, 0 to disable them.
      delete: α of deletion, 0 to disable it.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(
        self,
        *,
        probability: Probability = 0.5,
        synonyms: str | None = None,
        replace: Fraction | None = None,
        insert: Fraction | None = None,
        swap: Fraction = 0.1,
        delete: Fraction = 0.1,
    ):
        for name, value in (("replace", replace), ("insert", insert)):
            if synonyms is None and value:
                raise ConfigError(f"{name}={value}: needs a table of synonyms; set synonyms, or leave {name} out")
        default = 0.0 if synonyms is None else 0.1
        self._replace, self._insert = (default if value is None else value for value in (replace, insert))
        self._swap, self._delete = swap, delete
        if not any((self._replace, self._insert, swap, delete)):
            raise ConfigError("replace=0, insert=0, swap=0, delete=0: no edit is left; set one above 0")
        self._probability = probability
        self._synonyms = {} if synonyms is None else _synonyms(synonyms)

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample with some of its captions edited."""
        edits: list[Edit] = []
        for edit, alpha in (
            (self.replace_words, self._replace),
            (self.insert_words, self._insert),
            (self.swap_words, self._swap),
            (self.delete_words, self._delete),
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

    def replace_words(self, words: list[str], random: np.random.Generator) -> list[str]:
        """Some words replaced by synonyms; the punctuation around them stays."""
        known = [place for place, word in enumerate(words) if self._synonyms_of(word)]
        out = list(words)
        for i in random.permutation(len(known))[: _count(self._replace, words)].tolist():
            place = known[i]
            synonyms = self._synonyms_of(words[place])
            synonym = synonyms[int(random.integers(len(synonyms)))]
            out[place] = _CORE.sub(lambda _, new=synonym: new, words[place], count=1)  # type: ignore[misc]
        return out

    def insert_words(self, words: list[str], random: np.random.Generator) -> list[str]:
        """Synonyms of some words inserted at random places."""
        known = [self._synonyms_of(word) for word in words if self._synonyms_of(word)]
        out = list(words)
        for _ in range(_count(self._insert, words) if known else 0):
            synonyms = known[int(random.integers(len(known)))]
            out.insert(int(random.integers(len(out) + 1)), synonyms[int(random.integers(len(synonyms)))])
        return out

    def swap_words(self, words: list[str], random: np.random.Generator) -> list[str]:
        """Random pairs of words swapped."""
        out = list(words)
        for _ in range(_count(self._swap, words) if len(words) > 1 else 0):
            a, b = random.choice(len(out), 2, replace=False).tolist()
            out[a], out[b] = out[b], out[a]
        return out

    def delete_words(self, words: list[str], random: np.random.Generator) -> list[str]:
        """Some words deleted, never all."""
        kept = random.random(len(words)) >= self._delete
        kept[int(random.integers(len(words)))] |= not kept.any()
        return [word for word, keep in zip(words, kept.tolist(), strict=True) if keep]

    def _synonyms_of(self, word: str) -> list[str]:
        core = _CORE.search(word)
        return self._synonyms.get(core[0].casefold(), []) if core else []


def _count(alpha: float, words: list[str]) -> int:
    return max(1, int(alpha * len(words)))


def _synonyms(path: str) -> dict[str, list[str]]:
    synonyms_of: dict[str, dict[str, None]] = {}
    for number, row in lookup.rows(path, option="synonyms"):
        where = f"synonyms={path!r}: line {number}"
        word = lookup.text_of(lookup.field(row, "word", where=where), where=where)
        value = lookup.field(row, "synonym", where=where)
        for synonym in value if isinstance(value, list) else [value]:
            text = lookup.text_of(synonym, where=where).replace("_", " ")
            if not word or not text.strip():
                raise ConfigError(f"{where}: an empty word; correct that line")
            if text.casefold() != word.casefold():
                synonyms_of.setdefault(word.casefold(), {})[text] = None
    if not synonyms_of:
        raise ConfigError(f"synonyms={path!r}: holds no synonyms; check the file")
    return {word: list(synonyms) for word, synonyms in synonyms_of.items()}
