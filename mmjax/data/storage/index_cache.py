"""Indexes of data that are built once and kept: arrays in ``$MMJAX_CACHE``, or else ``~/.cache/mmjax/index``.

An index belongs to its files as they were: each has a stamp, and one that differs means building anew. The folder holds
nothing that cannot be built again and may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from typing import IO

import numpy as np

from mmjax.data.storage import filesystem

LAYOUT = 2  # of the files here; another number leaves older ones unread

_STAMPS, _NAMES = "stamps", "names"  # of the sources, and of the arrays, which are kept as ``=name``


def folder() -> str:
    """Where indexes are kept."""
    return os.environ.get("MMJAX_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "mmjax", "index")


def load_or_build(
    kind: str,
    sources: Sequence[str],
    build: Callable[[], dict[str, np.ndarray]],
    *,
    stamps: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """The arrays that ``build()`` makes of ``sources`` (files, folders), from the cache where it has them.

    ``kind`` says what is built and with which options: all that the arrays depend on besides the content of the
    sources. ``stamps`` are those of the sources where the caller has them already. A cache that is damaged is built
    anew; one that cannot be written is done without.
    """
    before = list(filesystem.stamps(sources) if stamps is None else stamps)
    path = os.path.join(folder(), _name(kind, sources))
    found = _load(path, before)
    if found is None:
        found = build()
        objects = [name for name, array in found.items() if array.dtype.hasobject]
        if objects:
            raise TypeError(f"{kind}: array {objects[0]!r} holds Python objects, which an index does not")
        # Under the stamps from before: what changed while it was read is built anew the next time.
        _save(path, before, found)
    return found


def _name(kind: str, sources: Sequence[str]) -> str:
    places = [
        path if filesystem.is_url(path) else os.path.abspath(path) for path in map(filesystem.local_path, sources)
    ]
    digest = hashlib.sha256("\0".join([str(LAYOUT), kind, *places]).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{''.join(c if c.isalnum() else '-' for c in kind)[:24]}-{digest[:40]}.npz"


def _load(path: str, stamps: list[str]) -> dict[str, np.ndarray] | None:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            if arrays[_STAMPS].tolist() != stamps:
                return None
            return {name: arrays[f"={name}"] for name in arrays[_NAMES].tolist()}
    except Exception:  # a damaged file can fail in any way; whichever it was, the index is built anew
        return None


def _save(path: str, stamps: list[str], arrays: dict[str, np.ndarray]) -> None:
    temporary = None
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), suffix=".tmp", delete=False) as file:
            temporary = file.name
            texts = {_STAMPS: np.array(stamps, np.str_), _NAMES: np.array(list(arrays), np.str_)}
            _write(file, texts | {f"={name}": array for name, array in arrays.items()})
        os.replace(temporary, path)
    except OSError:  # read-only or full: the next start builds it again
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _write(file: IO[bytes], arrays: dict[str, np.ndarray]) -> None:
    """As ``np.savez``, which has names of arguments that no array can have, and pickles what it does not know."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
