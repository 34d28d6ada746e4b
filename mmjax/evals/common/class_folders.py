"""Data sets of classification below a folder of benchmarks: WebDatasets, folders of classes, and TFDS."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmjax.evals.common.folders import find_webdatasets, first_of

logger = logging.getLogger(__name__)

ClassSplit = tuple[str, str, dict[str, Any]]
"""The name, the split, and the source."""

_PICTURES = {".jpg", ".jpeg", ".png", ".webp"}
_SPLITS = ("test", "val", "validation")
_FILES = {"class_names": ("classnames.txt", "classnames.json"), "templates": ("templates.txt", "templates.json")}
_WORDNET = re.compile(r"n\d{8}")


def find_classes(root: Path, *, prompts: bool = True) -> Iterator[ClassSplit]:
    """The data sets in ``root``, and WebDatasets one folder deeper too; sorted within each kind.

    Args:
        root: The folder in which they lie.
        prompts: Leave out those whose classes have no names that a prompt could use.
    """
    for data in find_webdatasets(root):
        if data.kind != "retrieval" and (data.path / "classnames.txt").exists():
            yield data.name, "test", {"name": "webdataset", "path": str(data.path)}
    for folder in sorted(child for child in root.iterdir() if child.is_dir()):
        yield from _classes(folder, prompts) or _tfds(folder)


def _classes(folder: Path, prompts: bool) -> list[ClassSplit]:
    """A split's folder with one folder a class."""
    split = next((name for name in _SPLITS if _has_classes(folder / name)), None)
    if split is None:
        return []
    source: dict[str, Any] = {"name": "folders", "path": str(folder)}
    for option, names in _FILES.items():
        if (path := first_of(folder, names)) is not None:
            source[option] = str(path)
    first = min(child.name for child in (folder / split).iterdir() if child.is_dir())
    if prompts and "class_names" not in source and _WORDNET.fullmatch(first):
        logger.warning(
            "%s: folders are called %s and so on, which says nothing in a prompt; put the names into %s",
            folder,
            first,
            folder / _FILES["class_names"][0],
        )
        return []
    return [(folder.name, split, source)]


def _has_classes(split: Path) -> bool:
    """Whether there are several folders, the first of them with a picture."""
    if not split.is_dir():
        return False
    inner = sorted(child for child in split.iterdir() if child.is_dir() and not child.name.startswith("."))
    return len(inner) > 1 and any(child.suffix.lower() in _PICTURES for child in inner[0].iterdir())


def _tfds(folder: Path) -> list[ClassSplit]:
    """A prepared data set whose newest version has names of labels."""
    versions = [child for child in folder.iterdir() if child.is_dir() and (child / "dataset_info.json").exists()]
    for version in sorted(versions, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)], reverse=True):
        if any(version.glob("*label*.labels.txt")):
            try:
                splits = json.loads((version / "dataset_info.json").read_text(encoding="utf-8"))["splits"]
                names = [split["name"] for split in splits]
            except (OSError, ValueError, KeyError, TypeError):  # found when the data set is opened
                names = ["test"]
            split = next((name for name in _SPLITS if name in names), "test")
            return [(folder.name, split, {"name": "tfds", "path": str(folder)})]
    return []
