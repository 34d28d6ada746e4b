"""The official accuracy of VQA: answers without articles and punctuation, against those of ten people."""

from __future__ import annotations

import re
from collections.abc import Sequence

_JOINED = ';/[]"{}()=+\\_-><@`,?!'
"""Punctuation that goes: without a trace beside a space or if a number has a comma, and else for a space."""

_DIGITS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    )
}

_CONTRACTIONS = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
    couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've
    something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
""".split()  # noqa: SIM905

_REPAIRED = {word[:i] + word[i + 1 :]: word for word in _CONTRACTIONS for i, c in enumerate(word) if c == "'"}
"""What lacks one apostrophe, and what it stands for."""

_REPAIRED["somebody'd"] = "somebodyd"  # so in the official table

_COMMA, _PERIOD = re.compile(r"\d,\d"), re.compile(r"\.(?!\d)")


_ANNOTATORS = 3
"""Of ten people so many must agree that an answer counts fully."""


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """``min(1, n / 3)`` with n the people who gave the answer, averaged over all choices of one person less.

    As in the official code for VQA (Antol et al. 2015, arXiv:1505.00468), ``answer`` is normalized, people's answers
    lose their punctuation alone, and only where they are not all the same.
    """
    answer = normalize(answer)
    if len(set(people)) > 1:
        people = [without_punctuation(other) for other in people]
    same = [other == answer for other in people]
    return sum(min(1.0, (sum(same) - one) / _ANNOTATORS) for one in same) / len(same)


def normalize(answer: str) -> str:
    """An answer in lower case without articles and punctuation, numbers to ten as digits, contractions repaired.

    >>> normalize("The  two dogs."), normalize("dont know"), normalize("1,000"), normalize("black-and-white")
    ('2 dogs', "don't know", '1000', 'black and white')
    """
    answer = without_punctuation(answer.replace("\n", " ").replace("\t", " ").strip())
    terms = [_DIGITS.get(term, term) for term in answer.lower().split()]
    return " ".join(_REPAIRED.get(term, term) for term in terms if term not in ("a", "an", "the"))


def without_punctuation(text: str) -> str:
    """``text`` without periods that no digit follows, and without other signs or with spaces in their places."""
    has_comma, before = _COMMA.search(text) is not None, text
    for sign in _JOINED:
        beside = f"{sign} " in before or f" {sign}" in before
        text = text.replace(sign, "" if beside or has_comma else " ")
    return _PERIOD.sub("", text)
