"""Paths as a user writes them: braces, globs, ``a::b`` and ``{split}``, expanded into the files that they name."""

from __future__ import annotations

import collections
import glob
import os
import re
from collections.abc import Sequence
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.data.storage import filesystem

PATHS_LIMIT = 1 << 22  # more from one pair of braces is a slip of the finger

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")


def expand(path: str | os.PathLike[str] | Sequence[str], *, split: str | None = None, key: str = "path") -> list[str]:
    """The files and folders that ``path`` names, in its order; those of a glob in natural order (2 before 10).

    Understood are lists, ``a::b``, ``{00000..00331}``, ``{a,b}`` and ``*``, ``?``, ``[…]``; ``{split}`` is replaced by
    the split where one is given. ``key`` is the option to blame. A path that is there as it is written is taken so.
    """
    parts: list[Any] = list(path) if isinstance(path, (list, tuple)) else [path]
    if not parts or not all(isinstance(part, (str, os.PathLike)) and os.fspath(part) for part in parts):
        raise ConfigError(f"{key}={path!r}: expected a path, or a list of them; name at least one file or folder")
    found: list[str] = []
    for part in parts:
        for single in os.fspath(part).split("::"):
            found += _one(filesystem.local_path(single), split, key)
    twice = next((name for name, count in collections.Counter(found).items() if count > 1), None)
    if twice is not None:
        raise ConfigError(f"{key}={path!r}: names {twice!r} twice; name it once, and weigh sources by mixing them")
    return found


def expand_braces(path: str, *, key: str = "path") -> list[str]:
    """Shell braces expanded; those that are neither a range nor a list stay."""
    start = path.find("{")
    while start >= 0:
        parts, end = _parts(path, start)
        options = (
            _range(parts[0], key) if len(parts) == 1 else [o for part in parts for o in expand_braces(part, key=key)]
        )
        if options:
            tails = expand_braces(path[end:], key=key)
            if len(options) * len(tails) > PATHS_LIMIT:
                raise ConfigError(f"{key}={path!r}: more than {PATHS_LIMIT} paths; check the braces' numbers")
            return [path[:start] + option + tail for option in options for tail in tails]
        start = path.find("{", start + 1)
    return [path]


def natural_key(name: str) -> list[Any]:
    """A key for sorting in which numbers count as numbers."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]


def _one(path: str, split: str | None, key: str) -> list[str]:
    filled = path if split is None else path.replace("{split}", split)
    names = expand_braces(filled, key=key)
    there = dict(zip(names, filesystem.map_paths(filesystem.exists, names), strict=True))
    found = [one for name in names for one in ([name] if there[name] else _glob(name))]
    gone = [name for name in names if not there[name] and not glob.has_magic(name)]
    if gone and found:
        raise ConfigError(
            f"{key}={path!r}: {len(gone)} of {len(names)} are not there, the first is {gone[0]!r}; name those "
            "that are, or take them by a glob (*)"
        )
    if not found:
        raise ConfigError(_missing(path, names[0], split, key))
    return found


def _missing(path: str, first: str, split: str | None, key: str) -> str:
    if split is not None and "{split}" in path:
        present = list_splits(path)
        if present:
            return f"split={split!r}: {key}={path!r} has no such split; there are {', '.join(present)}"
    kind = "no file matches" if glob.has_magic(first) else "no such file or folder"
    return f"{key}={path!r}: {kind} (looked for {first!r}); check the name"


def list_splits(path: str) -> list[str]:
    """The splits for which a path with ``{split}`` in it names something."""
    pattern = expand_braces(filesystem.local_path(path))[0]
    head, _, tail = pattern.partition("{split}")
    middle = _matcher(head) + "(?P<split>[^/]+)" + "(?P=split)".join(map(_matcher, tail.split("{split}"))) + r"\Z"
    matches = (re.search(middle, name) for name in _glob(pattern.replace("{split}", "*")))
    return sorted({match["split"] for match in matches if match})


def _matcher(glob_text: str) -> str:
    """A glob's text within a path as a regular expression."""
    return "".join({"*": "[^/]*", "?": "[^/]"}.get(c, re.escape(c)) for c in glob_text)


def _glob(pattern: str) -> list[str]:
    if not glob.has_magic(pattern):
        return []
    return sorted(filesystem.glob_paths(pattern), key=natural_key)


def _parts(text: str, start: int) -> tuple[list[str], int]:
    """What stands between commas in the braces that open at ``start``, and where those end; nothing if they do not."""
    parts, depth, begin = [], 0, start + 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0 or (depth == 1 and text[place] == ","):
            parts.append(text[begin:place])
            begin = place + 1
        if depth == 0:
            return parts, begin
    return [""], start


def _range(text: str, key: str) -> list[str]:
    """The numbers of ``00..12`` or ``00..12..2``; none where it is only text."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return []
    first, last = int(match[1]), int(match[2])
    step = abs(int(match[3] or 1)) or 1
    if abs(last - first) // step >= PATHS_LIMIT:
        raise ConfigError(f"{key}={{{text}}}: more than {PATHS_LIMIT} paths; check the braces' numbers")
    padded = any(re.match(r"-?0\d", number) for number in match.group(1, 2))
    width = max(len(match[1]), len(match[2])) if padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return [f"{number:0{width}d}" for number in numbers]
