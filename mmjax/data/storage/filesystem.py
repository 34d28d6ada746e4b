"""Where data lies: local files by the standard library, URLs (``scheme://``) by whatever fsspec has installed.

Everything here is safe over threads, fork and spawn: a file that is read in ranges stays open, in a bounded number, and
is read by position; what a process inherits is not used where it may be half-way through something.
"""

from __future__ import annotations

import functools
import glob
import os
import posixpath
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar

from mmjax.core.config import ConfigError
from mmjax.data.sample import Unreadable
from mmjax.data.storage.open_files import FILES

T = TypeVar("T")

REMOTE_THREADS = 16

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(path: str) -> bool:
    """Whether fsspec reads it. ``file://`` is a local path in other words."""
    return _SCHEME.match(path) is not None and not path.startswith(("file://", "local://"))


def local_path(path: str | os.PathLike[str]) -> str:
    """A path as it is used: ``~`` expanded, ``file://`` taken off; a URL as it is."""
    path = os.fspath(path)
    if is_url(path):
        return path
    return os.path.expanduser(re.sub(r"^(file|local)://", "", path))


def exists(path: str) -> bool:
    """Whether there is a file or folder of that name."""
    path = local_path(path)
    if is_url(path):
        fs, name = _filesystem(path)
        return bool(fs.exists(name))
    return os.path.exists(path)


def is_folder(path: str) -> bool:
    """Whether it is a folder; False where nothing is there."""
    path = local_path(path)
    if is_url(path):
        fs, name = _filesystem(path)
        return bool(fs.isdir(name))
    return os.path.isdir(path)


def list_entries(folder: str) -> list[tuple[str, bool]]:
    """Name and whether it is a folder, of everything in ``folder``, sorted by code point."""
    folder = local_path(folder)
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


def list_names(folder: str) -> list[str]:
    """The names of everything in ``folder``, sorted by code point."""
    return [name for name, _ in list_entries(folder)]


def glob_paths(pattern: str) -> list[str]:
    """The files and folders that match ``pattern``, in no order."""
    if is_url(pattern):
        fs, name = _filesystem(pattern)
        return [fs.unstrip_protocol(match) for match in fs.glob(name)]
    return glob.glob(pattern, recursive=True)


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
    path = local_path(path)
    if is_url(path):
        fs, name = _filesystem(path)
        return int(fs.size(name))
    return os.stat(path).st_size


def stamp(path: str) -> str:
    """Changes when the file does: its size with its time of change, or the store's own tag. Folders have one too."""
    path = local_path(path)
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
    return map_paths(stamp, paths)


def read(path: str) -> bytes:
    """A whole file."""
    path = local_path(path)
    if is_url(path):
        fs, name = _filesystem(path)
        return bytes(fs.cat_file(name))
    with open(path, "rb") as file:
        return file.read()


def read_range(path: str, offset: int, length: int) -> bytes:
    """``length`` bytes from ``offset``; Unreadable("truncated archive") if the file ends before."""
    if offset < 0 or length < 0:
        raise ValueError(f"offset {offset} and length {length} must not be negative")
    path = local_path(path)
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
        raise Unreadable("truncated archive", f"{length} bytes at {offset} reach beyond the end of the file", key=path)
    return data


def open_file(path: str) -> BinaryIO:
    """The file for reading from its start, seekable; close it."""
    path = local_path(path)
    if is_url(path):
        fs, name = _filesystem(path)
        return fs.open(name, "rb")
    return open(path, "rb")


def map_paths(function: Callable[[str], T], paths: Sequence[str]) -> list[T]:
    """``function`` of each path in order; of URLs many at once, because each waits for an answer."""
    if len(paths) < 2 or not any(map(is_url, paths)):
        return [function(path) for path in paths]
    with ThreadPoolExecutor(REMOTE_THREADS) as pool:
        return list(pool.map(function, paths))


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
