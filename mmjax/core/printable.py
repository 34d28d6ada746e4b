"""Makes text that is not ours safe to show."""

from __future__ import annotations

import re

# Control characters, marks that reorder text, invisible line ends, and surrogates, which no encoding can write.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def printable(text: str, *, lines: bool = False) -> str:
    r"""``text`` with control characters and marks that reorder it as escapes; ``lines`` keeps line ends.

    Example::

        >>> printable("\x1b[31mred\x07")
        '\\x1b[31mred\\x07'
    """
    return _UNSAFE.sub(lambda match: match[0] if lines and match[0] == "\n" else ascii(match[0])[1:-1], text)
