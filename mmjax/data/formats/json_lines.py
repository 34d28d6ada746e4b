"""JSON lines: one object a line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any

from mmjax.data.sample import Unreadable
from mmjax.data.text import why_not_utf8


def parse_json_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any] | Unreadable]]:
    """Line number (from 1) and object of each line that is not empty; or why it is none.

    Lines end at line feeds alone: JSON may hold other characters that Python takes for the end of a line.
    """
    for number, line in enumerate(lines, 1):
        text = line.removeprefix(codecs.BOM_UTF8).strip()
        if not text:
            continue
        try:
            value = json.loads(text)
        except UnicodeDecodeError:
            yield number, Unreadable("caption is not UTF-8", why_not_utf8(line))
        except (ValueError, RecursionError) as error:
            yield number, Unreadable("bad row", f"not JSON: {error}")
        else:
            yield number, value if isinstance(value, dict) else Unreadable("bad row", "not a JSON object")
