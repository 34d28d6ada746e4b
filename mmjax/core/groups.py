"""Groups of rows by name, such as those of people or kinds of hard negatives, as numbers that need no list of names."""

from __future__ import annotations

import math
import zlib
from typing import Any

UNKNOWN = -1
"""The group of a row whose group is not known."""


_PLACE_BITS = 5


def place_number(place: int, text: str) -> int:
    """One number, 0 to 2**31 - 1, for a text and its place among others, 31 for all places from there on."""
    return (zlib.crc32(text.encode()) & 0x3FFFFFF) << _PLACE_BITS | min(place, (1 << _PLACE_BITS) - 1)


def split_place(number: Any) -> tuple[Any, Any]:
    """Place and text of ``place_number``, of whole arrays; equal texts have equal numbers, and others nearly never.

    >>> [split_place(place_number(place, "a cat"))[0] for place in (0, 3, 99)]
    [0, 3, 31]
    """
    return number & ((1 << _PLACE_BITS) - 1), number >> _PLACE_BITS


def group_number(*values: Any) -> int:
    """One number, 0 to 2**31 - 1, for a combination of names or numbers; UNKNOWN if any of them is.

    A value is unknown if it is None, empty, not a number, or -1.

    >>> group_number("female", 30) == group_number("female", "30") != group_number("male", 30)
    True
    >>> group_number("female", None), group_number(-1)
    (-1, -1)
    """
    names = []
    for value in values:
        value = value.item() if hasattr(value, "item") else value
        if value is None or value in ("", -1) or (isinstance(value, float) and math.isnan(value)):
            return UNKNOWN
        names.append(str(value))
    return zlib.crc32("\0".join(names).encode()) & 0x7FFFFFFF
