"""Benchmarks in CLIP_benchmark's WebDataset layout, as they lie side by side in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

KINDS = ("classification", "multilabel", "retrieval")


class WebDataset(NamedTuple):
    """A data set: its name without ``wds_`` and ``_test``, its folder, and of ``KINDS`` the one that it is."""

    name: str
    path: Path
    kind: str


def find_webdatasets(root: Path) -> Iterator[WebDataset]:
    """The folders in ``root``, or in a folder of it, that have a split ``test`` in this layout, sorted."""
    for parent in (root, *_folders(root)):
        for folder in _folders(parent):
            if (folder / "test" / "nshards.txt").exists() or (folder / "test" / "0.tar").exists():
                name = folder.name.removeprefix("wds_").removesuffix("_test")
                yield WebDataset(name, folder, _kind(folder))


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _kind(folder: Path) -> str:
    """As ``dataset_type.txt`` says; what cannot be read is found when the data set is opened."""
    try:
        text = (folder / "dataset_type.txt").read_text(encoding="utf-8", errors="replace").strip().lower()
    except OSError:
        return KINDS[0]
    return text if text in KINDS else KINDS[0]
