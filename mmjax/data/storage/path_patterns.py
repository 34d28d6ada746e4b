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

PATHS_LIMIT = 1 << 22  # more from one pair of braces is a typing error

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")


def expand(path: str | os.PathLike[str] | Sequence[str], *, split: str | None = None, key: str = "path") -> list[str]:
    """The files and folders that ``path`` names, in its order; those of a glob in natural order (2 before 10).

    Args:
      path: one or more of: a path, ``a::b``, ``{00000..00331}``, ``{a,b}``, a glob (``*``, ``?``, ``[…]``), a URL. A
        path that exists literally is not expanded.
      split: replaces ``{split}``.
      key: the option that errors name.
    """
    patterns: list[Any] = list(path) if isinstance(path, (list, tuple)) else [path]
    if not patterns or not all(isinstance(pattern, (str, os.PathLike)) and os.fspath(pattern) for pattern in patterns):
        raise ConfigError(f"{key}={path!r}: expected a path, or a list of them; name at least one file or folder")
    paths: list[str] = []
    for pattern in patterns:
        for single in os.fspath(pattern).split("::"):
            paths += _expand_one(filesystem.local_path(single), split, key)
    duplicate = next((name for name, count in collections.Counter(paths).items() if count > 1), None)
    if duplicate is not None:
        raise ConfigError(f"{key}={path!r}: names {duplicate!r} twice; name it once, and weigh sources by mixing them")
    return paths


def has_split(path: str | os.PathLike[str] | Sequence[str]) -> bool:
    """Whether ``{split}`` stands in ``path``."""
    patterns: list[Any] = list(path) if isinstance(path, (list, tuple)) else [path]
    return any("{split}" in os.fspath(pattern) for pattern in patterns)


def expand_braces(path: str, *, key: str = "path") -> list[str]:
    """Expands the braces of a shell; those that hold neither a range nor a list stay."""
    start = path.find("{")
    while start >= 0:
        items, end = _split_braces(path, start)
        options = (
            _range(items[0], key) if len(items) == 1 else [o for item in items for o in expand_braces(item, key=key)]
        )
        if options:
            tails = expand_braces(path[end:], key=key)
            if len(options) * len(tails) > PATHS_LIMIT:
                raise ConfigError(f"{key}={path!r}: more than {PATHS_LIMIT} paths; check the braces' numbers")
            return [path[:start] + option + tail for option in options for tail in tails]
        start = path.find("{", start + 1)
    return [path]


def natural_key(name: str) -> list[Any]:
    """A sort key that compares the numbers in names as numbers."""
    return [int(piece) if number % 2 else piece for number, piece in enumerate(re.split(r"([0-9]+)", name))]


def _expand_one(path: str, split: str | None, key: str) -> list[str]:
    filled = path if split is None else path.replace("{split}", split)
    names = expand_braces(filled, key=key)
    exists = dict(zip(names, filesystem.map_paths(filesystem.exists, names), strict=True))
    paths = [path for name in names for path in ([name] if exists[name] else _glob(name))]
    missing = [name for name in names if not exists[name] and not glob.has_magic(name)]
    if missing and paths:
        raise ConfigError(
            f"{key}={path!r}: {len(missing)} of {len(names)} do not exist, such as {missing[0]!r}; name those "
            "that do, or use a glob (*)"
        )
    if not paths:
        raise ConfigError(_no_match(path, names[0], split, key))
    for name in paths:
        if not filesystem.is_url(name) and not os.path.isfile(name) and not os.path.isdir(name):
            raise ConfigError(f"{key}={path!r}: {name!r} is neither a file nor a folder; name one")
    return paths


def _no_match(path: str, first: str, split: str | None, key: str) -> str:
    if split is not None and "{split}" in path:
        present = list_splits(path)
        if present:
            return f"split={split!r}: {key}={path!r} has no such split; there are {', '.join(present)}"
    kind = "no file matches" if glob.has_magic(first) else "no such file or folder"
    return f"{key}={path!r}: {kind} (looked for {first!r}); check the name"


def list_splits(path: str) -> list[str]:
    """The splits for which a path with ``{split}`` names something."""
    pattern = expand_braces(filesystem.local_path(path))[0]
    head, _, tail = pattern.partition("{split}")
    middle = _matcher(head) + "(?P<split>[^/]+)" + "(?P=split)".join(map(_matcher, tail.split("{split}"))) + r"\Z"
    matches = (re.search(middle, name) for name in _glob(pattern.replace("{split}", "*")))
    return sorted({match["split"] for match in matches if match})


def _matcher(glob_text: str) -> str:
    """A piece of a glob as a regular expression."""
    return "".join({"*": "[^/]*", "?": "[^/]"}.get(c, re.escape(c)) for c in glob_text)


def _glob(pattern: str) -> list[str]:
    if not glob.has_magic(pattern):
        return []
    return sorted(filesystem.glob_paths(pattern), key=natural_key)


def _split_braces(text: str, start: int) -> tuple[list[str], int]:
    """The items between commas in the braces that open at ``start``, and the index after these braces."""
    items, depth, begin = [], 0, start + 1
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0 or (depth == 1 and text[index] == ","):
            items.append(text[begin:index])
            begin = index + 1
        if depth == 0:
            return items, begin
    return [""], start  # they do not close


def _range(text: str, key: str) -> list[str]:
    """The numbers of ``00..12`` or ``00..12..2``; none for other texts."""
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
