"""Where the tar shards of a split lie, and what a folder in CLIP_benchmark's layout tells about them."""

from __future__ import annotations

import posixpath
from typing import Any, NamedTuple

from mmjax.core.config import ConfigError
from mmjax.data.storage import filesystem, path_patterns


class Located(NamedTuple):
    """Shards, and what stands beside them."""

    paths: list[str]
    lines: bool = False  # whether each line of a text is a caption
    class_names: str | None = None
    templates: str | None = None


def locate(path: str | tuple[str, ...], split: str) -> Located:
    """The shards, and what a folder tells about them."""
    found = path_patterns.expand(path, split=split)
    folders = [name for name in found if filesystem.is_folder(name)]
    if not folders:
        return Located(found)
    if len(found) == 1:
        return _folder(found[0], split, path)
    return Located([shard for name in found for shard in (_tars(name, path) if name in folders else [name])])


def _folder(folder: str, split: str, path: Any) -> Located:
    names = dict(filesystem.list_entries(folder))
    tars = folder
    if names.get(split):
        tars = posixpath.join(folder, split)
    elif not any(name.endswith(".tar") for name in names):
        present = [
            name
            for name, inner in names.items()
            if inner and any(map(_is_tar, filesystem.list_names(f"{folder}/{name}")))
        ]
        if present:
            raise ConfigError(f"split={split!r}: path={path!r} has no such split; there are {', '.join(present)}")
    elif posixpath.basename(folder.rstrip("/")) == split:
        folder = posixpath.dirname(folder.rstrip("/"))
        names = dict(filesystem.list_entries(folder))
    paths = _tars(tars, path)
    count = f"{tars}/nshards.txt"
    if filesystem.exists(count):
        text = filesystem.read(count).strip()
        if not text.isdigit() or int(text) != len(paths):
            raise ConfigError(
                f"path={path!r}: {count} says {text[:20].decode(errors='replace')!r} and there are {len(paths)} "
                "shards; bring the others or correct it"
            )
    kind = filesystem.read(f"{folder}/dataset_type.txt").strip() if "dataset_type.txt" in names else b""
    if kind == b"multilabel":
        raise ConfigError(f"path={path!r}: pictures of several classes (multilabel) are not supported; choose another")
    class_names, templates = (
        f"{folder}/{name}" if name in names else None
        for name in ("classnames.txt", "zeroshot_classification_templates.txt")
    )
    return Located(paths, kind == b"retrieval", class_names, templates)


def _tars(folder: str, path: Any) -> list[str]:
    names = sorted(filter(_is_tar, filesystem.list_names(folder)), key=path_patterns.natural_key)
    paths = [f"{folder.rstrip('/')}/{name}" for name in names]
    if not paths:
        raise ConfigError(f"path={path!r}: no *.tar in {folder!r}; name the folder or the shards themselves")
    return paths


def _is_tar(name: str) -> bool:
    return name.endswith(".tar") and not name.startswith(".")
