"""What edits of captions have in common: the case of a replacement, and the article before it."""

from __future__ import annotations

import re

_ARTICLE = re.compile(r"(?<!\w)(an?)\s+$", re.IGNORECASE)


def with_case_of(old: str, new: str) -> str:
    """``new`` with the capitals of ``old``: all, the first letter's, or as it is."""
    if len(old) > 1 and old.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def fits(caption: str, start: int, *, old: str, new: str) -> bool:
    """Whether ``new`` can take the place of ``old`` at ``start`` without telling itself by "a" or "an" before it."""
    return _is_vowel(old) == _is_vowel(new) or _ARTICLE.search(caption, max(start - 4, 0), start) is None


def _is_vowel(text: str) -> bool:
    return text[:1].casefold() in tuple("aeiou")
