"""Files and folders of data sets: local ones by the standard library, URLs (``scheme://``) by fsspec.

Data is read with fsspec, which reads ranges of files from https, S3, GCS and whatever else is installed. Run folders
and checkpoints are written with ``etils.epath``, as Orbax does; no code uses both.

Everything here may be used in threads and in forked or spawned processes: local files are read by position, the last
few stay open, and each process has its own connections.
"""

from __future__ import annotations

import functools
import glob
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, BinaryIO, TypeVar

from mmjax.core.config import Between, ConfigError
from mmjax.data.sample import Unreadable
from mmjax.data.storage.open_files import FILES, check_regular, open_regular

T = TypeVar("T")

REMOTE_THREADS = 16
LONGEST_LINE = 64 << 20  # bytes of a row of a table

MaxMib = Annotated[int, Between(1, 4095)]
"""Largest file, archive member or record of one example in MiB; a larger one is unreadable."""

MAX_MIB: MaxMib = 256

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(path: str) -> bool:
    """Whether fsspec reads the path; ``file://`` is a local path."""
    return _SCHEME.match(path) is not None and not path.startswith(("file://", "local://"))


def protocols_of(url: str) -> set[str]:
    """The protocols that fsspec uses for a URL: several for ``zip://a.png::https://…``; local files have none."""
    return {link.partition("://")[0].lower() for link in url.split("::")} - {"file", "local"}


def local_path(path: str | os.PathLike[str]) -> str:
    """A local path with ``~`` expanded and ``file://`` removed; a URL as it is."""
    path = os.fspath(path)
    if is_url(path):
        return path
    return os.path.expanduser(re.sub(r"^(file|local)://", "", path))


def exists(path: str) -> bool:
    """Whether the file or folder exists."""
    path = local_path(path)
    if is_url(path):
        fs, name = _filesystem(path)
        return bool(fs.exists(name))
    return os.path.exists(path)


def is_folder(path: str) -> bool:
    """Whether the path is an existing folder."""
    path = local_path(path)
    if is_url(path):
        fs, name = _filesystem(path)
        return bool(fs.isdir(name))
    return os.path.isdir(path)


def list_entries(folder: str) -> list[tuple[str, bool]]:
    """``(name, is_folder)`` of everything in ``folder``, sorted by name."""
    folder = local_path(folder)
    if not is_url(folder):
        with os.scandir(folder) as scan:
            # Asking the entry itself fails where a link leads to itself.
            return sorted((e.name, os.path.isdir(e) if e.is_symlink() else e.is_dir()) for e in scan)
    fs, name = _filesystem(folder)
    listing = []
    for info in fs.ls(name, detail=True):
        if info["name"].rstrip("/") == name.rstrip("/"):
            if info["type"] != "directory":
                raise NotADirectoryError(folder)
            continue  # some stores list a folder in itself
        listing.append((posixpath.basename(info["name"].rstrip("/")), info["type"] == "directory"))
    return sorted(listing)


def list_names(folder: str) -> list[str]:
    """The names of everything in ``folder``, sorted."""
    return [name for name, _ in list_entries(folder)]


def glob_paths(pattern: str) -> list[str]:
    """The files and folders that match ``pattern``, in no order."""
    if is_url(pattern):
        fs, name = _filesystem(pattern)
        return [fs.unstrip_protocol(match) for match in fs.glob(name)]
    return glob.glob(pattern, recursive=True)


def join(folder: str, name: str) -> str:
    """``folder/name`` for a name that comes from data; Unreadable("bad row") if it leads out of the folder."""
    clean = posixpath.normpath(name)
    if not name or clean in (".", "..") or clean.startswith("../"):
        raise Unreadable("bad row", f"{name!r} names nothing in the folder", key=name)
    if posixpath.isabs(clean) or _SCHEME.match(name) or "\0" in name:
        raise Unreadable("bad row", f"{name!r} is not a name relative to the folder", key=name)
    return posixpath.join(folder, clean)


def size(path: str) -> int:
    """The size of a file in bytes."""
    path = local_path(path)
    if is_url(path):
        fs, name = _filesystem(path)
        return int(fs.size(name))
    status = os.stat(path)
    check_regular(path, status)
    return status.st_size


def stamp(path: str) -> str:
    """A text that changes with the file or folder: size and modification time, or the object store's tag."""
    path = local_path(path)
    if is_url(path):
        fs, name = _filesystem(path)
        info = fs.info(name)
        tags = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
        return "-".join(str(x) for x in (info.get("size"), next((info[k] for k in tags if info.get(k)), "")))
    status = os.stat(path)
    FILES.forget_unless(path, status)
    return f"{status.st_size}-{status.st_mtime_ns}"


def stamps(paths: Sequence[str]) -> list[str]:
    """The stamp of each path; URLs are requested concurrently."""
    return map_paths(stamp, paths)


def read(path: str, *, max_mib: int | None = None) -> bytes:
    """The content of a file; Unreadable("file too large") if it has more than ``max_mib``."""
    path = local_path(path)
    if is_url(path):
        fs, name = _filesystem(path)
        data = bytes(fs.cat_file(name) if max_mib is None else fs.cat_file(name, start=0, end=(max_mib << 20) + 1))
        check_size(len(data), max_mib)
        return data
    with open_file(path) as file:
        length = os.fstat(file.fileno()).st_size
        check_size(length, max_mib)
        return file.read(length)  # and no more: files of /proc have the length 0 and may never end


def check_size(length: int, max_mib: int | None) -> None:
    """Unreadable("file too large") if ``length`` bytes are more than ``max_mib``."""
    if max_mib is not None and length > max_mib << 20:
        raise Unreadable("file too large", f"{length} bytes, more than max_mib={max_mib}")


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
    """Opens a regular file for reading; it can seek."""
    path = local_path(path)
    if is_url(path):
        fs, name = _filesystem(path)
        return fs.open(name, "rb")
    return open(path, "rb", opener=open_regular)


def read_lines(file: BinaryIO, *, name: str) -> Iterator[bytes]:
    """The lines of a file with their ends; ConfigError that begins with ``name`` where one is too long for a row."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            raise ConfigError(f"{name}: a line has {LONGEST_LINE >> 20} MiB or more; name a table of rows")
        yield line


def map_paths(function: Callable[[str], T], paths: Sequence[str]) -> list[T]:
    """``function(path)`` of each path in order; concurrently if some are URLs."""
    if len(paths) < 2 or not any(map(is_url, paths)):
        return [function(path) for path in paths]
    with ThreadPoolExecutor(REMOTE_THREADS) as pool:
        return list(pool.map(function, paths))


def _filesystem(url: str) -> tuple[Any, str]:
    return _filesystem_of(url, os.getpid())


@functools.lru_cache(maxsize=4096)
def _filesystem_of(url: str, process: int) -> tuple[Any, str]:
    """Cached per process: a file system's threads do not survive a fork."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ConfigError(f"path={url!r}: {' '.join(str(error).split())}; or copy the data to a local folder") from None
    except ValueError as error:
        raise ConfigError(f"path={url!r}: {error}; check the part before ://") from None
