"""The tar shards of a split, and the metadata of a folder in CLIP_benchmark's layout."""

from __future__ import annotations

import posixpath
from typing import Any, NamedTuple

from mmjax.core.config import ConfigError
from mmjax.data.storage import filesystem, path_patterns


class Shards(NamedTuple):
    """Paths of shards, and the metadata beside them."""

    paths: list[str]
    lines: bool = False  # each line of a text is a caption
    class_names: str | None = None
    templates: str | None = None
    multilabel: bool = False  # a picture has several classes
    ignores_split: bool = False  # the path names the same shards for any split


def find_shards(path: str | tuple[str, ...], split: str) -> Shards:
    """The shards of ``split`` that ``path`` names: files, or folders of them."""
    names = path_patterns.expand(path, split=split)
    ignores_split = not path_patterns.has_split(path)
    folders = [name for name in names if filesystem.is_folder(name)]
    if not folders:
        return Shards(names, ignores_split=ignores_split)
    if len(names) == 1:
        return _folder(names[0], split, path)
    paths = [shard for name in names for shard in (_tars(name, path) if name in folders else [name])]
    return Shards(paths, ignores_split=ignores_split)


def _folder(folder: str, split: str, path: Any) -> Shards:
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
    class_names, templates = (
        f"{folder}/{name}" if name in names else None
        for name in ("classnames.txt", "zeroshot_classification_templates.txt")
    )
    ignores_split = tars == folder and not path_patterns.has_split(path)
    return Shards(paths, kind == b"retrieval", class_names, templates, kind == b"multilabel", ignores_split)


def _tars(folder: str, path: Any) -> list[str]:
    names = sorted(filter(_is_tar, filesystem.list_names(folder)), key=path_patterns.natural_key)
    paths = [f"{folder.rstrip('/')}/{name}" for name in names]
    if not paths:
        raise ConfigError(f"path={path!r}: no *.tar in {folder!r}; name the folder or the shards themselves")
    return paths


def _is_tar(name: str) -> bool:
    return name.endswith(".tar") and not name.startswith(".")
