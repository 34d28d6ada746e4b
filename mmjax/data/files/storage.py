"""Where data lies: local files by the standard library, URLs (``scheme://``) by whatever fsspec has installed.

Everything here is safe over threads, fork and spawn: a file that is read in ranges stays open, in a bounded number, and
is read by position; what a process inherits is not used where it may be half-way through something.
"""

from __future__ import annotations

import builtins
import collections
import functools
import glob
import os
import posixpath
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar

from mmjax.core.config import ConfigError
from mmjax.data.files.open_files import FILES
from mmjax.data.sample import Unreadable

T = TypeVar("T")

REMOTE_THREADS = 16
PATHS_LIMIT = 1 << 22  # more from one pair of braces is a slip of the finger

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(path: str) -> bool:
    """Whether fsspec reads it. ``file://`` is a local path in other words."""
    return _SCHEME.match(path) is not None and not path.startswith(("file://", "local://"))


def local(path: str | os.PathLike[str]) -> str:
    """A path as it is used: ``~`` expanded, ``file://`` taken off; a URL as it is."""
    path = os.fspath(path)
    if is_url(path):
        return path
    return os.path.expanduser(re.sub(r"^(file|local)://", "", path))


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
            found += _one(local(single), split, key)
    twice = next((name for name, count in collections.Counter(found).items() if count > 1), None)
    if twice is not None:
        raise ConfigError(f"{key}={path!r}: names {twice!r} twice; name it once, and weigh sources by mixing them")
    return found


def braces(path: str, *, key: str = "path") -> list[str]:
    """Shell braces expanded; those that are neither a range nor a list stay."""
    start = path.find("{")
    while start >= 0:
        parts, end = _parts(path, start)
        options = _range(parts[0], key) if len(parts) == 1 else [o for part in parts for o in braces(part, key=key)]
        if options:
            tails = braces(path[end:], key=key)
            if len(options) * len(tails) > PATHS_LIMIT:
                raise ConfigError(f"{key}={path!r}: more than {PATHS_LIMIT} paths; check the braces' numbers")
            return [path[:start] + option + tail for option in options for tail in tails]
        start = path.find("{", start + 1)
    return [path]


def exists(path: str) -> bool:
    """Whether there is a file or folder of that name."""
    path = local(path)
    if is_url(path):
        fs, name = _filesystem(path)
        return bool(fs.exists(name))
    return os.path.exists(path)


def is_folder(path: str) -> bool:
    """Whether it is a folder; False where nothing is there."""
    path = local(path)
    if is_url(path):
        fs, name = _filesystem(path)
        return bool(fs.isdir(name))
    return os.path.isdir(path)


def entries(folder: str) -> list[tuple[str, bool]]:
    """Name and whether it is a folder, of everything in ``folder``, sorted by code point."""
    folder = local(folder)
    if not is_url(folder):
        with os.scandir(folder) as scan:
            return sorted((entry.name, entry.is_dir()) for entry in scan)
    fs, name = _filesystem(folder)
    found = []
    for info in fs.ls(name, detail=True):
        if info["name"].rstrip("/") == name.rstrip("/"):
            if info["type"] != "directory":
                raise NotADirectoryError(folder)
            continue  # some stores list a folder in itself
        found.append((posixpath.basename(info["name"].rstrip("/")), info["type"] == "directory"))
    return sorted(found)


def listing(folder: str) -> list[str]:
    """The names of everything in ``folder``, sorted by code point."""
    return [name for name, _ in entries(folder)]


def join(folder: str, name: str) -> str:
    """``folder/name`` for a name that comes from data: one that leads out of the folder is a bad row."""
    clean = posixpath.normpath(name)
    if not name or clean in (".", "..") or clean.startswith("../"):
        raise Unreadable("bad row", f"{name!r} names nothing in the folder", key=name)
    if posixpath.isabs(clean) or _SCHEME.match(name) or "\0" in name:
        raise Unreadable("bad row", f"{name!r} is not a name relative to the folder", key=name)
    return posixpath.join(folder, clean)


def size(path: str) -> int:
    """Bytes in a file."""
    path = local(path)
    if is_url(path):
        fs, name = _filesystem(path)
        return int(fs.size(name))
    return os.stat(path).st_size


def stamp(path: str) -> str:
    """Changes when the file does: its size with its time of change, or the store's own tag. Folders have one too."""
    path = local(path)
    if is_url(path):
        fs, name = _filesystem(path)
        info = fs.info(name)
        known = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
        return "-".join(str(x) for x in (info.get("size"), next((info[k] for k in known if info.get(k)), "")))
    stat = os.stat(path)
    FILES.forget_unless(path, stat)
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def stamps(paths: Sequence[str]) -> list[str]:
    """``stamp`` of each; those of URLs are asked for together."""
    return together(stamp, paths)


def read(path: str) -> bytes:
    """A whole file."""
    path = local(path)
    if is_url(path):
        fs, name = _filesystem(path)
        return bytes(fs.cat_file(name))
    with builtins.open(path, "rb") as file:
        return file.read()


def read_range(path: str, offset: int, length: int) -> bytes:
    """``length`` bytes from ``offset``; a file that ends before is a torn archive. No more than that is transferred."""
    if offset < 0 or length < 0:
        raise ValueError(f"offset {offset} and length {length} must not be negative")
    path = local(path)
    if length == 0:
        return b""
    if is_url(path):
        fs, name = _filesystem(path)
        data = bytes(fs.cat_file(name, start=offset, end=offset + length))
    else:
        data = FILES.read(path, offset, length)
    if len(data) > length:
        raise OSError(f"{path}: the server sends whole files where a range is asked for; copy the data elsewhere")
    if len(data) < length:
        raise Unreadable("torn archive", f"{length} bytes at {offset} reach beyond the end of the file", key=path)
    return data


def open(path: str) -> BinaryIO:
    """The file for reading from its start, seekable; close it."""
    path = local(path)
    if is_url(path):
        fs, name = _filesystem(path)
        return fs.open(name, "rb")
    return builtins.open(path, "rb")


def together(function: Callable[[str], T], paths: Sequence[str]) -> list[T]:
    """``function`` of each path in order; of URLs many at once, because each waits for an answer."""
    if len(paths) < 2 or not any(map(is_url, paths)):
        return [function(path) for path in paths]
    with ThreadPoolExecutor(REMOTE_THREADS) as pool:
        return list(pool.map(function, paths))


def natural(name: str) -> list[Any]:
    """A key for sorting in which numbers count as numbers."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]


def _one(path: str, split: str | None, key: str) -> list[str]:
    filled = path if split is None else path.replace("{split}", split)
    names = braces(filled, key=key)
    there = dict(zip(names, together(exists, names), strict=True))
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
        present = splits(path)
        if present:
            return f"split={split!r}: {key}={path!r} has no such split; there are {', '.join(present)}"
    kind = "no file matches" if glob.has_magic(first) else "no such file or folder"
    return f"{key}={path!r}: {kind} (looked for {first!r}); check the name"


def splits(path: str) -> list[str]:
    """The splits for which a path with ``{split}`` in it names something."""
    pattern = braces(local(path))[0]
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
    if is_url(pattern):
        fs, name = _filesystem(pattern)
        return sorted((fs.unstrip_protocol(found) for found in fs.glob(name)), key=natural)
    return sorted(glob.glob(pattern, recursive=True), key=natural)


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


def _filesystem(url: str) -> tuple[Any, str]:
    return _filesystem_of(url, os.getpid())


@functools.lru_cache(maxsize=4096)
def _filesystem_of(url: str, process: int) -> tuple[Any, str]:
    """A file system's threads do not survive a fork: each ``process`` has its own."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ConfigError(f"path={url!r}: {' '.join(str(error).split())}; or copy the data to a local folder") from None
    except ValueError as error:
        raise ConfigError(f"path={url!r}: {error}; check the part before ://") from None
