"""Hard negatives of two captions: a word of one changes places with a word of the other (CLIC)."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np

from mmjax.data.negatives import rules, swaps
from mmjax.data.negatives.edits import fits, with_case_of

Finder = Literal["tagged", "lists"]
"""``tagged`` finds words by part of speech, with TextBlob; ``lists`` those of the word lists that ship."""

KIND_OF_TAG = {
    **dict.fromkeys(("NN", "NNS", "NNP", "NNPS"), "noun"),
    **dict.fromkeys(("JJ", "JJR", "JJS"), "adjective"),
    **dict.fromkeys(("RB", "RBR", "RBS"), "adverb"),
    **dict.fromkeys(("VB", "VBP", "VBZ", "VBD", "VBG", "VBN"), "verb"),
    **{"IN": "preposition", "CD": "number"},
}
"""Tags of the Penn Treebank whose words mean something by themselves."""

_AUXILIARIES = {
    *("is", "are", "was", "were", "am", "be", "been", "being"),
    *("has", "have", "had", "having", "do", "does", "did"),
}

WordSpans = dict[tuple[str, str], list[tuple[str, int]]]
"""By kind and class of a kind: words, and where they begin."""


def exchange_words(
    first: str, second: str, find: Finder, random: np.random.Generator
) -> list[tuple[str, tuple[str, str]]]:
    """Both captions with one word exchanged, once for each class that both have words of: (kind, (first, second)).

    No word that both captions have is exchanged, nor one for another of its meaning, nor one that "a" or "an" before it
    would tell. Captions that would only change places, such as "a red cat" and "a blue cat", would stay true, and are
    left out. Classes come in random order.

    Example::

        >>> exchange_words("a red cat", "a blue mat", "lists", np.random.default_rng(0))
        [('exchange_color', ('a blue cat', 'a red mat'))]
    """
    own, others = find_words(first, find), find_words(second, find)
    common = sorted(own.keys() & others.keys())
    made = []
    for name in (common[i] for i in random.permutation(len(common)).tolist()):
        pairs = [(*a, *b) for a in own[name] for b in others[name]]
        for a, a_start, b, b_start in (pairs[i] for i in random.permutation(len(pairs)).tolist()):
            fit = fits(first, a_start, old=a, new=b) and fits(second, b_start, old=b, new=a)
            if fit and _can_exchange(name, a, b, own, others):
                new_a, new_b = (_inside(x, start, name[1]) for x, start in ((a, a_start), (b, b_start)))
                exchanged = _replace(first, a_start, a, new_b), _replace(second, b_start, b, new_a)
                if _normalized(exchanged[0]) == _normalized(second) and _normalized(exchanged[1]) == _normalized(first):
                    continue
                made.append((f"exchange_{name[0]}", exchanged))
                break
    return made


@functools.lru_cache(maxsize=1 << 16)  # of a batch, every caption is looked at twice, and again in the next epoch
def find_words(caption: str, find: Finder) -> WordSpans:
    """The words of ``caption`` that can be exchanged."""
    spans: WordSpans = {}
    if find == "tagged":
        for token in swaps.Tagged(caption, find_tags=swaps.tagger()).tokens:
            if is_content(token):
                spans.setdefault((KIND_OF_TAG[token.tag], token.tag), []).append((token.text, token.start))
        return spans
    for kind in rules.KINDS:
        listed = rules.word_list(kind)
        for match in listed.pattern.finditer(caption):
            part, _ = listed.line_of[match[0].casefold()]
            spans.setdefault((kind, str(part)), []).append((match[0], match.start()))
    return spans


def is_content(token: swaps.Token) -> bool:
    """Whether it is a word of a kind above, and no auxiliary."""
    return token.tag in KIND_OF_TAG and token.text.casefold() not in _AUXILIARIES and token.text[0].isalnum()


def _can_exchange(name: tuple[str, str], a: str, b: str, own: WordSpans, others: WordSpans) -> bool:
    low, high = a.casefold(), b.casefold()
    if name[0] in rules.KINDS:
        line_of = rules.word_list(name[0]).line_of
        if line_of[low] == line_of[high]:
            return False
    return high not in {w.casefold() for w, _ in own[name]} and low not in {w.casefold() for w, _ in others[name]}


def _normalized(caption: str) -> str:
    """A caption without its capitals and its last mark."""
    return caption.casefold().rstrip(" .!?")


def _inside(word: str, start: int, tag: str) -> str:
    """A word as it is spelled inside a sentence."""
    return word.lower() if start == 0 and word.istitle() and not tag.startswith("NNP") else word


def _replace(caption: str, start: int, old: str, new: str) -> str:
    new = with_case_of(old, new) if start == 0 else new
    return caption[:start] + new + caption[start + len(old) :]
