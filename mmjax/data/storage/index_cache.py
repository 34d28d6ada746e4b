"""Indexes of data files, built once and kept as arrays in ``$MMJAX_CACHE`` or ``~/.cache/mmjax/index``.

An index is valid as long as the stamps of its files are the same. Each begins with a checksum of its name and content,
so that a damaged one is built again. The folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from mmjax.core.atomic import write_atomically
from mmjax.data.storage import filesystem
from mmjax.data.storage.open_files import open_regular

LAYOUT = 3  # of the cached files; older ones are not read

_CHECKSUM_SIZE, _BLOCK = 32, 1 << 20  # bytes
_STAMPS, _NAMES = "stamps", "names"  # members beside the arrays, which are stored as ``=name``


def folder() -> str:
    """The folder of the cached indexes."""
    return os.environ.get("MMJAX_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "mmjax", "index")


def load_or_build(
    kind: str,
    sources: Sequence[str],
    build: Callable[[], dict[str, np.ndarray]],
    *,
    stamps: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """The arrays that ``build()`` returns, from the cache if it has them.

    A damaged cache file is built again; a cache that cannot be written is not used.

    Args:
      kind: what is built, with all options that the arrays depend on.
      sources: the files and folders that ``build`` reads.
      build: makes the arrays.
      stamps: of the sources, if the caller has them already.
    """
    before = list(filesystem.stamps(sources) if stamps is None else stamps)
    path = os.path.join(folder(), _name(kind, sources))
    arrays = _load(path, before)
    if arrays is None:
        arrays = build()
        objects = [name for name, array in arrays.items() if array.dtype.hasobject]
        if objects:
            raise TypeError(f"{kind}: array {objects[0]!r} holds Python objects, which an index does not")
        # With the stamps from before: an index of files that changed meanwhile is built again the next time.
        _save(path, before, arrays)
    return arrays


def _name(kind: str, sources: Sequence[str]) -> str:
    places = [
        path if filesystem.is_url(path) else os.path.abspath(path) for path in map(filesystem.local_path, sources)
    ]
    digest = hashlib.sha256("\0".join([str(LAYOUT), kind, *places]).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{''.join(c if c.isalnum() else '-' for c in kind)[:24]}-{digest[:40]}.npz"


def _load(path: str, stamps: list[str]) -> dict[str, np.ndarray] | None:
    try:
        with open(path, "rb", opener=open_regular) as file:
            if file.read(_CHECKSUM_SIZE) != _checksum(path, iter(lambda: file.read(_BLOCK), b"")):
                return None
            file.seek(_CHECKSUM_SIZE)
            arrays = np.load(file, allow_pickle=False)
            if arrays[_STAMPS].tolist() != stamps:
                return None
            return {name: arrays[f"={name}"] for name in arrays[_NAMES].tolist()}
    except Exception:  # a damaged file can fail in any way
        return None


def _save(path: str, stamps: list[str], arrays: dict[str, np.ndarray]) -> None:
    texts = {_STAMPS: np.array(stamps, np.str_), _NAMES: np.array(list(arrays), np.str_)}
    # A cache that is read-only or full is not used: the next start builds the index again.
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        content = _packed(texts | {f"={name}": array for name, array in arrays.items()})
        write_atomically(Path(path), b"".join([_checksum(path, [content]), content]))


def _checksum(path: str, blocks: Iterable[bytes]) -> bytes:
    digest = hashlib.blake2b(os.path.basename(path).encode(), digest_size=_CHECKSUM_SIZE)
    for block in blocks:
        digest.update(block)
    return digest.digest()


def _packed(arrays: dict[str, np.ndarray]) -> bytes:
    """Like ``np.savez``, but for arrays of any name, and without pickles."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    return buffer.getvalue()
