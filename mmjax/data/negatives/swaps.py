"""Hard negatives by word order: two words or phrases of one part of speech change places (NegCLIP).

When and why vision-language models behave like bags-of-words (Yuksekgonul et al. 2023, arXiv:2210.01936) swaps noun
phrases, nouns, adjectives, adverbs and verb phrases. What exchanging two things of a list would give ("a cat and a
dog"), or two that are next to each other ("a cat beside a dog"), means the same as before and is left out; so are pairs
that differ in number or tense, which grammar would tell.

Parts of speech are those of TextBlob's PatternTagger: a lexicon in the package, so nothing is downloaded.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.negatives.edits import fits, with_case_of

KINDS = ("noun_phrase", "noun", "adjective", "adverb", "verb_phrase")

_TOKEN = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
# A letter for each tag of the Penn Treebank that matters, so that phrases are regular expressions over letters.
_LETTERS = {"DT": "d", "PRP$": "d", "CD": "c", "NN": "n", "NNP": "n", "NNS": "N", "NNPS": "N", "MD": "m"} | {
    **dict.fromkeys(("JJ", "JJR", "JJS"), "j"),
    **dict.fromkeys(("RB", "RBR", "RBS"), "r"),
    **{"VB": "b", "VBP": "p", "VBZ": "z", "VBD": "D", "VBG": "g", "VBN": "v"},
}
_PHRASES = {
    "noun_phrase": re.compile(r"(?:d[cjgv]*|[cj]+)[nN]+"),
    "noun": re.compile(r"[nN]+"),
    "adjective": re.compile(r"j"),
    "adverb": re.compile(r"r"),
    "verb_phrase": re.compile(r"m?[bpzDgv]+"),
}
_JOINS = "and", "or", "&", ",", "/", "nor"
# What may stand between two members of a list, besides ``_JOINS``.
_LISTED = {"noun_phrase": "dcjgvnN", "noun": "dnN", "adjective": "j", "adverb": "r"}

SYMMETRIC = {"beside", "near", "with", "by", "alongside", "against", "next to", "close to", "far from", "touching"}
"""Relations that hold in both directions: exchanging the two says the same."""
# What may stand before these and still says as much of the one as of the other.
_STILL = {
    "is", "are", "was", "were", "stand", "stands", "standing", "sit", "sits", "sitting", "seated", "right", "very",
}  # fmt: skip


class Token(NamedTuple):
    """A word or mark, where it begins, and the letter of its tag; "." for those that do not matter."""

    text: str
    start: int
    letter: str
    tag: str


class Tagged:
    """A caption with the parts of speech of its words.

    Example::

        >>> tags = ["DT", "JJ", "NN", "IN", "DT", "JJ", "NN"]  # what ``tagger`` finds
        >>> tagged = Tagged("a red cat on a blue mat", find_tags=lambda words: list(zip(words, tags)))
        >>> tagged.swap("adjective", np.random.default_rng(0))
        'a blue cat on a red mat'
    """

    def __init__(self, caption: str, *, find_tags: Callable[[list[str]], Sequence[Sequence[str]]]):
        self.caption = caption
        matches = list(_TOKEN.finditer(caption))
        tags = [tagged[1] for tagged in find_tags([match[0] for match in matches])] if matches else []
        self.tokens = [
            Token(match[0], match.start(), _LETTERS.get(tag, "."), tag)
            for match, tag in zip(matches, tags, strict=True)
        ]
        self._letters = "".join(token.letter for token in self.tokens)

    def swap(self, kind: str, random: np.random.Generator) -> str | None:
        """The caption with two different spans of that kind exchanged; None if there are no two that can be."""
        spans = [range(*match.span()) for match in _PHRASES[kind].finditer(self._letters)]
        pairs = list(itertools.combinations(spans, 2))
        for number in random.permutation(len(pairs)).tolist():
            swapped = self._exchange(kind, *pairs[number])
            if swapped is not None:
                return swapped
        return None

    def _exchange(self, kind: str, first: range, second: range) -> str | None:
        if not self._are_alike(kind, first, second) or self._are_listed(kind, first, second):
            return None
        if kind in ("noun", "noun_phrase") and self._are_mutual(first, second):
            return None
        (a, a_start), (b, b_start) = self._text(first), self._text(second)
        if a.casefold() == b.casefold():
            return None
        if not fits(self.caption, a_start, old=a, new=b) or not fits(self.caption, b_start, old=b, new=a):
            return None
        new_a, new_b = a, b
        if first.start == 0 and a[0].isupper() and not a.isupper() and not self.tokens[0].tag.startswith("NNP"):
            new_a, new_b = a[0].lower() + a[1:], with_case_of(a, b)
        between = self.caption[a_start + len(a) : b_start]
        return self.caption[:a_start] + new_b + between + new_a + self.caption[b_start + len(b) :]

    def _are_alike(self, kind: str, first: range, second: range) -> bool:
        """Whether both have one number, or one tense."""
        a, b = (self._letters[span.start : span.stop] for span in (first, second))
        return a == b if kind == "verb_phrase" else a[-1] == b[-1]

    def _are_listed(self, kind: str, first: range, second: range) -> bool:
        """Whether they are members of one list, whose order means nothing."""
        between = self.tokens[first.stop : second.start]
        joins = [token.text.casefold() in _JOINS for token in between]
        # "a big red bus" is a list without a word between.
        return (any(joins) or kind in ("adjective", "adverb")) and all(
            join or token.letter in _LISTED.get(kind, "") for join, token in zip(joins, between, strict=True)
        )

    def _are_mutual(self, first: range, second: range) -> bool:
        """Whether all that is said of the two is that they are beside each other."""
        modifiers, starts = [], []
        for span in (first, second):
            start = span.start
            while start and self._letters[span.start] != "d" and self._letters[start - 1] in "cjgv":
                start -= 1
            modifiers.append([token.text.casefold() for token in self.tokens[start : span.start]])
            starts.append(start - (start > 0 and self._letters[start - 1] == "d"))
        between = [token.text.casefold() for token in self.tokens[first.stop : starts[1]]]
        before = self.tokens[starts[0] - 1] if starts[0] else None
        is_object = before is not None and before.letter in "bpzDgv" and before.text.casefold() not in _STILL
        relation = " ".join(word for word in between if word not in _STILL)
        return relation in SYMMETRIC and modifiers[0] == modifiers[1] and not is_object

    def _text(self, span: range) -> tuple[str, int]:
        start, last = self.tokens[span.start].start, self.tokens[span.stop - 1]
        return self.caption[start : last.start + len(last.text)], start


@functools.cache
def tagger(option: str = "--method=swap", otherwise: str = "--method=rules") -> Callable[[list[str]], Any]:
    """The function from words to (word, tag) pairs; ConfigError if TextBlob is not installed.

    Args:
      option: that needs it, for the error.
      otherwise: an option that does not.
    """
    try:
        return importlib.import_module("textblob.en").parser.find_tags
    except ImportError:
        raise ConfigError(
            f"{option}: finds parts of speech with TextBlob, which is not installed; pip install "
            f"'mmjax[negatives]', or use {otherwise}"
        ) from None
