"""What models reply, taken apart; a reply that is not as asked for gives None or nothing, and never an error."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d+[.)])\s*")
_QUOTES = "\"'“”‘’`"


def first_line(reply: str, *, after: str = "=>") -> str | None:
    """The first line that is not empty, of what follows the last ``after`` if that is there; None if there is none."""
    for line in reply.rpartition(after)[2].splitlines():
        text = " ".join(line.split()).strip(_QUOTES).strip()
        if text:
            return text
    return None


def list_lines(reply: str, *, begin: str = "") -> list[str]:
    """The lines without bullets and numbers, each once; with ``begin``, those that begin so."""
    lines = (" ".join(_BULLET.sub("", line).split()).strip(_QUOTES).strip(" .") for line in reply.splitlines())
    return list(dict.fromkeys(line for line in lines if line and line.lower().startswith(begin.lower())))


def json_object(reply: str) -> dict[str, Any] | None:
    """The JSON object in a reply, which may stand in a code fence or between sentences."""
    fence = _FENCE.search(reply)
    text = fence[1] if fence else reply
    begin, end = text.find("{"), text.rfind("}")
    if begin < 0 or end < begin:
        return None
    try:
        value = json.loads(text[begin : end + 1])
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def objects(reply: str, *, most: int) -> list[str] | None:
    """Names of objects, as ``biaug_objects`` asks for them."""
    value = (json_object(reply) or {}).get("objects")
    if not isinstance(value, list):
        return None
    texts = [" ".join(text.split()) for text in value if isinstance(text, str) and text.strip()]
    return list(dict.fromkeys(texts))[:most]


def attributes(reply: str, *, kinds: Sequence[str]) -> list[dict[str, str]] | None:
    """Attributes with true and wrong captions that differ in the value alone, as ``biaug_attributes`` asks for them."""
    value = (json_object(reply) or {}).get("attributes")
    if not isinstance(value, list):
        return None
    names = ("kind", "value", "other", "caption", "wrong")
    rows: list[dict[str, str]] = []
    for item in value:
        if not isinstance(item, dict) or not all(isinstance(item.get(name), str) for name in names):
            continue
        one = {name: " ".join(item[name].split()) for name in names}
        if one["kind"] in kinds and _differ_in_value(one) and one not in rows:
            rows.append(one)
    return rows


def _differ_in_value(one: dict[str, str]) -> bool:
    if not one["value"] or not one["other"] or one["value"].lower() == one["other"].lower():
        return False
    pieces = re.split(rf"(?<!\w){re.escape(one['value'])}(?!\w)", one["caption"])
    return len(pieces) > 1 and one["wrong"] in {
        one["value"].join(pieces[:k]) + one["other"] + one["value"].join(pieces[k:]) for k in range(1, len(pieces))
    }
