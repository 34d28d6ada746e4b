"""Captions as they are stored to captions as they are learnt from: strictly UTF-8, one line, no control characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Literal, get_args

from mmjax.core.config import ConfigError, choose
from mmjax.data.sample import Unreadable

Norm = Literal["none", "blip", "albef"]
NORMS: tuple[Norm, ...] = get_args(Norm)

LIMIT = 4096  # characters; ten times what fills a context of 77 tokens
WORDS = 30  # that the published cleanings keep

# Byte order marks and control characters; those that are white space become a space instead, by ``split``.
_DROPPED = {code: None for code in range(0xA0) if unicodedata.category(chr(code)) == "Cc" and not chr(code).isspace()}
_DROPPED[0xFEFF] = None

_BLIP = re.compile(r'[.!"()*#:;~]')
_ALBEF = re.compile(r"""[,.'!?"()*#:;~]""")


def check_norm(norm: str) -> Norm:
    """``norm`` if it is one of ``NORMS``; sources call this when they are made."""
    return choose(norm, NORMS, path="caption_norm")  # type: ignore[return-value]


def clean(text: bytes | str, *, norm: Norm = "none", limit: int = LIMIT) -> str:
    """One line of text without control characters, cut at ``limit`` characters; may be empty.

    ``none`` keeps the words as they are. ``blip`` (arXiv 2201.12086) and ``albef`` (arXiv 2107.07651) are these papers'
    cleanings: lower case, punctuation to spaces (blip) or taken out with hyphens and slashes to spaces (albef), and
    30 words at most. Retrieval results of both differ from those of ``none``.
    """
    try:
        if isinstance(text, str):
            text.encode()  # JSON and surrogateescape give strings that are no text
        else:
            text = bytes(text).decode()
    except UnicodeError as error:
        raise Unreadable("caption is not UTF-8", str(error)) from None
    text = " ".join(text[:limit].translate(_DROPPED).split())
    if norm == "none":
        return text
    text = text.lower()
    if norm == "blip":
        text = _BLIP.sub(" ", text)
    else:
        text = _ALBEF.sub("", text).replace("-", " ").replace("/", " ").replace("<person>", "person")
    return " ".join(text.split()[:WORDS])


def captions_of(
    values: object, key: str = "", *, norm: Norm = "none", limit: int = LIMIT, most: int | None = None
) -> list[str]:
    """The texts that ``values`` (one, or an iterable of them; None is no text) hold, cleaned, the empty ones left out.

    ``most`` keeps the first so many. Raises Unreadable where one is not UTF-8, is not a text, or none is left.
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


def check_most(most: int | None) -> int | None:
    """``max_captions`` if it can be one."""
    if most is not None and most < 1:
        raise ConfigError(f"max_captions={most}: must be at least 1; leave it out for all")
    return most
