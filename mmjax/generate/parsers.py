"""What models reply, taken apart; a reply that is not as asked for gives None or nothing, and never an error."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d+[.)])\s*")
_AN = re.compile(r"\ban\b")
_QUOTES = "\"'“”‘’`"


def without_thoughts(reply: str) -> str:
    """The reply without what reasoning models think before it, up to ``</think>``; empty if they think to the end."""
    return _THOUGHTS.sub("", reply, count=1).strip()


def first_line(reply: str) -> str | None:
    """The first line that is not empty; one that only announces what comes (``Sure:``) is passed over.

    None if there is none.
    """
    lines = [text for line in reply.splitlines() if (text := " ".join(line.split()).strip(_QUOTES).strip())]
    kept = [line for line in lines if not line.endswith(":")] or lines
    return kept[0] if kept else None


def rewrite(reply: str, *, caption: str = "") -> str | None:
    """What a model writes after ``caption =>``; None if that is nothing.

    The first line counts, because models that only continue texts go on with captions of their own. A reply may repeat
    the caption, also below the pairs that were shown.
    """
    plain = re.escape(" ".join(caption.split()))
    lines = [" ".join(line.split()) for line in reply.splitlines()]
    for number, line in enumerate(lines):
        if plain and (match := re.match(rf"\W*{plain}\W*?=>", line, re.IGNORECASE)):
            return first_line("\n".join([line[match.end() :], *lines[number + 1 :]]))
    text = first_line(reply)
    return None if text is None else first_line(text.rpartition("=>")[2])


def choice(reply: str, choices: Sequence[str]) -> str | None:
    """The choice that a reply is, or the only one that its first line names; None if there is none."""
    line = (first_line(reply) or "").strip(" .").lower()
    plain = {text: one for one in choices if (text := one.strip(" .").lower())}
    if line in plain:
        return plain[line]
    named = [one for one in plain if re.search(rf"(?<!\w){re.escape(one)}(?!\w)", line)]
    longest = [one for one in named if not any(one != other and one in other for other in named)]
    return plain[longest[0]] if len(longest) == 1 else None


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
    """Whether the captions are the same but for the value, a or an before it, and capitals."""
    value, other, caption, wrong = (one[name].lower() for name in ("value", "other", "caption", "wrong"))
    if not value or not other or value == other:
        return False
    pieces = re.split(rf"(?<!\w){re.escape(value)}(?!\w)", caption)
    exchanged = (value.join(pieces[:k]) + other + value.join(pieces[k:]) for k in range(1, len(pieces)))
    return _AN.sub("a", wrong) in {_AN.sub("a", text) for text in exchanged}


_QUESTION = re.compile(r"question\s*:\s*(.+?\?)", re.IGNORECASE | re.DOTALL)
_ANSWER = re.compile(r"answer\s*:\s*(.+?)(?=\.(?:\s|$)|\n|\bquestion\s*:|$)", re.IGNORECASE | re.DOTALL)
_TURNS = re.compile(r"(question|answer)\s*:\s*(.*?)(?=\b(?:question|answer)\s*:|\Z)", re.IGNORECASE | re.DOTALL)
_SPEAKER = re.compile(
    r"^[\s>#*_-]*(?:\(?\d+[.)])?[\s*_]*(question|answer)\s*\d*[\s*_]*:[*_]*", re.IGNORECASE | re.MULTILINE
)
_NAMED = re.compile(r"\[([^\[\]|]+)\|\s*([A-Za-z]+)\s*\]")
_CALL = re.compile(r"^(.*?),?\s*\[([^\[\]]*)\]\s*\.?\s*$")
_REFUSAL = re.compile(
    r"\bI (?:can(?:not|'t|’t)|could not|am (?:sorry|unable|afraid|not able)|won't)\b|\bI'm (?:sorry|unable|afraid)\b"
    r"|\bas an AI\b",
    re.IGNORECASE,
)
_THOUGHTS = re.compile(r"\A\s*(?:<think>)?(?:(?!<think>).)*?</think>|\A\s*<think>.*", re.DOTALL)
_LEAK = re.compile(
    r"bounding[ -]?box|\bcaptions?\b|\bcoordinates?\b|\[\s*\d|\(\s*0?\.\d+\s*,|\b0\.\d\d+\b", re.IGNORECASE
)


def question_and_answer(reply: str) -> tuple[str, str] | None:
    """A question up to its ``?`` and an answer up to its period, in either order (SelTDA); None if one is missing.

    An answer with both yes and no is none.
    """
    question, answer = _QUESTION.search(reply), _ANSWER.search(reply)
    if question is None or answer is None:
        return None
    texts = " ".join(question[1].split()).replace(" ?", "?"), " ".join(answer[1].split()).strip(" .,")
    answered = set(re.findall(r"\w+", texts[1].lower()))
    if not all(texts) or {"yes", "no"} <= answered or "question:" in texts[0].lower() or "answer:" in texts[0].lower():
        return None
    return texts


def turns(reply: str) -> list[tuple[str, str]] | None:
    """Questions with the answers after them; None if they do not alternate or one is empty.

    Numbers and stars around ``Question:`` and ``Answer:`` at the beginning of a line belong to none.
    """
    plain = _SPEAKER.sub(lambda match: f"{match[1]}:", reply)
    spans = [(kind.lower(), " ".join(text.split())) for kind, text in _TURNS.findall(plain)]
    kinds, texts = [kind for kind, _ in spans], [text for _, text in spans]
    if not spans or kinds != ["question", "answer"] * (len(kinds) // 2) or not all(texts):
        return None
    return list(zip(texts[::2], texts[1::2], strict=True))


def labeled_sentence(reply: str) -> tuple[str, list[tuple[int, int, str]]] | None:
    """A sentence with names as ``[name | KIND]``: the plain text, and where its names are; None without any name."""
    line = first_line(reply)
    if line is None:
        return None
    text, entities, last = "", [], 0
    for match in _NAMED.finditer(line):
        text += line[last : match.start()]
        name = match[1].strip()
        if not name:
            return None
        entities.append((len(text), len(text) + len(name), match[2].upper()))
        text += name
        last = match.end()
    text += line[last:]
    return (text, entities) if entities and not set("[]|") & set(text) else None


def tool_call(line: str, *, tool: str, arguments: int, image: str) -> tuple[str, list[str]] | None:
    """``instruction, [tool, image, …]``: the instruction and the arguments; None if another tool or count is named."""
    match = _CALL.match(" ".join(_BULLET.sub("", line).split()))
    if match is None:
        return None
    instruction, pieces = match[1].strip(_QUOTES + " ,"), [piece.strip(_QUOTES + " ") for piece in match[2].split(",")]
    name, *values = pieces
    if not instruction or _plain(name) != _plain(tool) or len(values) != arguments or not all(values):
        return None
    return (instruction, values) if values[0] == image else None


def leaks(text: str) -> bool:
    """Whether a text speaks of captions, boxes or coordinates, which its reader does not have."""
    return _LEAK.search(text) is not None


def is_whole(text: str) -> bool:
    """Whether a reply ends with a sentence, and is no refusal."""
    return text.rstrip().endswith((".", "!", "?", '"', "”", ")")) and _REFUSAL.search(text) is None


def _plain(name: str) -> str:
    """The same for spellings of a tool's name."""
    return re.sub(r"[^a-z]", "", name.lower()).removeprefix("the").removesuffix("tool")
