"""Cleans captions: strictly UTF-8, one line, no control characters; and what published tokenizers clean besides."""

from __future__ import annotations

import html
import re
import string
import unicodedata
from collections.abc import Callable, Iterable
from typing import Annotated, Literal

from mmjax.core.config import Ge, choose
from mmjax.data.sample import Unreadable

Norm = Literal["none", "blip", "albef"]
"""How captions are cleaned; see ``clean``."""

MaxCaptions = Annotated[int, Ge(1, "leave it out for all")] | None
"""How many captions of an example are kept, the first ones."""

LIMIT = 4096  # characters: ten times a context of 77 tokens
WORDS = 30  # that the published methods keep

# Byte order marks and control characters; white space becomes a space, by ``split``.
_DROPPED = {code: None for code in range(0xA0) if unicodedata.category(chr(code)) == "Cc" and not chr(code).isspace()}
_DROPPED[0xFEFF] = None

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LATIN_MARKS = "‘’“”«»–—…·¡¿°§£€©®™\xa0\xad"
_BLIP = re.compile(r'[.!"()*#:;~]')
_ALBEF = re.compile(r"""[,.'!?"()*#:;~]""")


def clean(text: bytes | str, *, norm: Norm = "none", limit: int = LIMIT) -> str:
    """One line of text without control characters, cut at ``limit`` characters; may be empty.

    Args:
      text: bytes must be UTF-8, otherwise it is Unreadable.
      norm: ``none`` keeps the words. ``blip`` (arXiv:2201.12086) and ``albef`` (arXiv:2107.07651) are the methods of
        these papers: lower case, at most 30 words; blip replaces punctuation by spaces, albef removes it and replaces
        hyphens and slashes. Retrieval results of both differ from those of ``none``.
      limit: in characters.

    Example::

        >>> clean("  Two dogs,\tplaying. ", norm="blip")
        'two dogs, playing'
    """
    try:
        if isinstance(text, str):
            text.encode()  # JSON and surrogateescape give strings that are no text
        else:
            text = bytes(text).decode()
    except UnicodeError:
        raise Unreadable("caption is not UTF-8", why_not_utf8(text)) from None
    text = " ".join(text[:limit].translate(_DROPPED).split())
    if norm == "none":
        return text
    text = text.lower()
    if norm == "blip":
        text = _BLIP.sub(" ", text)
    else:
        text = _ALBEF.sub("", text).replace("-", " ").replace("/", " ").replace("<person>", "person")
    return " ".join(text.split()[:WORDS])


def why_not_utf8(text: bytes | str) -> str:
    """Why a text is not UTF-8, and the way out if it looks like Latin-1 (or cp1252, Windows' version); "" if it is.

    A str may have surrogates in place of the bytes that could not be decoded.
    """
    try:
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        data.decode()
    except UnicodeEncodeError as error:
        return str(error)
    except UnicodeDecodeError as error:
        around = data[max(error.start - 24, 0) : error.start + 24].decode("cp1252", "replace")
        others = [c for c in around if not c.isascii()]
        # In another alphabet, and in UTF-8 that was cut, most characters would be none of these.
        is_latin = (
            "\0" not in around
            and 2 * len(others) <= len(around)
            and all(c.isalpha() or c in _LATIN_MARKS for c in others)
        )
        hint = f"; in Latin-1 it is {around!r}: convert the file by iconv -f cp1252 -t utf-8" if is_latin else ""
        return f"{error.reason} at byte {error.start}{hint}"
    return ""


def captions_of(
    values: object, key: str = "", *, norm: Norm = "none", limit: int = LIMIT, most: int | None = None
) -> list[str]:
    """The captions of an example, cleaned and without empty ones.

    Raises Unreadable if a text is not UTF-8 or not a text, or if none is left.

    Args:
      values: a text, or an iterable of texts or None.
      key: of the example, for errors.
      norm: see ``clean``.
      limit: of a caption, in characters.
      most: keep the first ``most`` captions.
    """
    if values is None or isinstance(values, (bytes, str)):
        values = [values]
    if not isinstance(values, Iterable):
        raise Unreadable("bad row", f"a caption is of type {type(values).__name__}", key=key)
    texts = []
    for value in values:
        if value is None:
            continue
        if not isinstance(value, (bytes, str)):
            raise Unreadable("bad row", f"a caption is of type {type(value).__name__}", key=key)
        try:
            text = clean(value, norm=norm, limit=limit)
        except Unreadable as error:
            raise Unreadable(error.reason, error.detail, key=key) from None
        if text:
            texts.append(text)
    if not texts:
        raise Unreadable("no caption", "all are empty" if values else "there is none", key=key)
    return texts[:most]


def negatives_of(values: object, true: object, key: str = "", *, norm: Norm = "none") -> list[tuple[str, str, str]]:
    """The hard negatives of an example as (kind, true caption, false caption), cleaned; none without false captions.

    Args:
      values: false captions: a text, or an iterable of texts or None.
      true: the caption that they are false versions of.
      key: of the example, for errors.
      norm: see ``clean``.
    """
    try:
        (true_text,) = captions_of(true, key, norm=norm, most=1)
        return [("given", true_text, false) for false in captions_of(values, key, norm=norm)]
    except Unreadable as error:
        if error.reason != "no caption":
            raise
        return []


def with_answer(question: str, answer: str) -> str:
    """A question and its answer in one text, as those are trained on it that shall write both.

    >>> with_answer("what color is the cat", "black")
    'Question: what color is the cat? Answer: black.'
    """
    return f"Question: {question.rstrip(' ?')}? Answer: {answer.rstrip(' .')}."


def get_cleaning(name: str | None) -> Callable[[str], str]:
    """What a published tokenizer does to a text first, by open_clip's name for it.

    All but None repair wrongly decoded text and HTML entities and make one space of any white space. ``lower`` (CLIP's)
    also lowers case; ``canonicalize`` (SigLIP's) also drops punctuation, with ``_`` as a space.
    """
    if name is None:
        return _unchanged
    return _CLEANINGS[choose(name, _CLEANINGS, path="clean")]


def _unchanged(text: str) -> str:
    return text


def _whitespace(text: str) -> str:
    import ftfy  # only those who clean wait for its tables

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def _lower(text: str) -> str:
    return _whitespace(text).lower()


def _canonicalize(text: str) -> str:
    return " ".join(_whitespace(text).replace("_", " ").translate(_PUNCTUATION).lower().split())


_CLEANINGS = {"whitespace": _whitespace, "lower": _lower, "canonicalize": _canonicalize}
