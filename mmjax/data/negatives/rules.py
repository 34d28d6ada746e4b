"""Hard negatives by lists of words: a word of a caption is exchanged for another of its list (SVLC).

Teaching Structured Vision & Language Concepts (Doveh et al. 2023, arXiv:2211.11733) does this for colors, materials,
sizes, actions and states. The lists here are our own, ``lists/KIND.txt``: a line holds words of one meaning, separated
by commas, and a replacement is never of the same line. An empty line divides a list into parts, such as actions with
and without an object; a replacement is of the same part. The released code replaces letters wherever they stand, also
inside words, and never finds entries of several words; here only whole words are found, the longest entry first.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from typing import NamedTuple

import numpy as np

from mmjax.data.negatives.edits import fits, with_case_of

KINDS = ("color", "material", "size", "action", "state")
"""The lists that ship."""


class WordList(NamedTuple):
    """A list: what finds its entries, and each entry's part and line."""

    pattern: re.Pattern[str]
    line_of: dict[str, tuple[int, int]]


def replace_words(caption: str, kind: str, random: np.random.Generator) -> str | None:
    """``caption`` with one entry of the list ``kind`` exchanged for one of another line; None if it has none.

    Example::

        >>> replace_words("A scared man in a red hat", "color", np.random.default_rng(0)) != "A scared man in a red hat"
        True
    """
    listed = word_list(kind)
    places = list(listed.pattern.finditer(caption))
    if not places:
        return None
    place = places[int(random.integers(len(places)))]
    old = place[0]
    part, line = listed.line_of[old.casefold()]
    others = [
        entry
        for entry, (other_part, other) in listed.line_of.items()
        if other_part == part and other != line and fits(caption, place.start(), old=old, new=entry)
    ]
    if not others:
        return None
    new = with_case_of(old, others[int(random.integers(len(others)))])
    return caption[: place.start()] + new + caption[place.end() :]


@functools.cache
def word_list(kind: str) -> WordList:
    """The list of that kind."""
    file = importlib.resources.files(__package__).joinpath("lists", f"{kind}.txt")
    line_of: dict[str, tuple[int, int]] = {}
    part = 0
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        part += not line
        line_of |= {entry.strip(): (part, number) for entry in line.split(",") if line}
    longest_first = sorted(line_of, key=len, reverse=True)
    # Neither a part of a word nor of one with a hyphen or an apostrophe: "blue-eyed" is no "blue".
    pattern = rf"(?<![\w'’-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w'’-])"
    return WordList(re.compile(pattern, re.IGNORECASE), line_of)
