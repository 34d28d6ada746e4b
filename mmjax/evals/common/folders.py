"""Where the files of a benchmark lie below a folder of data sets."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

COCO_VAL2017 = ("coco/val2017", "coco/images/val2017", "coco2017/val2017", "val2017")

WEBDATASETS = ("classification", "multilabel", "retrieval")
"""Kinds of data sets in CLIP_benchmark's WebDataset layout."""


def first_of(root: Path, names: Sequence[str], *, holding: str = "") -> Path | None:
    """The first of the files or folders ``names`` of ``root`` that exists, and has a file ``holding``."""
    return next((root / name for name in names if (root / name / holding).exists()), None)


def benchmark(
    name: str, reader: str, path: Path | None, images: Path | dict[str, str] | None, *, expected: str
) -> dict[str, dict[str, Any]]:
    """What ``find`` returns of one data set: nothing, with a line in the log, if its annotations are without images.

    Args:
        name: The data set's, in metrics.
        reader: A module of ``mmjax.data.benchmarks``.
        path: The annotations, if they are there.
        images: The folder of images, or several by name, if they are there.
        expected: Where images may lie, for the log.
    """
    if path is None:
        return {}
    if not images:
        logger.warning("%s: %s is there, but not its images; put them into %s", name, path, expected)
        return {}
    where = {"image_roots": images} if isinstance(images, dict) else {"image_root": str(images)}
    return {name: {"source": {"name": f"mmjax.data.benchmarks.{reader}", "path": str(path), **where}}}


def annotated_files(
    reader: str, path: Path | None, images: Path | None, *, expected: str, **options: Any
) -> dict[str, Any]:
    """The option ``source`` of an evaluator for a file of annotations; nothing, with a line, if it has no images.

    Args:
        reader: A source.
        path: The annotations, if they are there.
        images: The folder that they name images from, if it is there.
        expected: Where that may lie, for the log.
        options: Further ones of the source.
    """
    if path is None or not path.exists():
        return {}
    if images is None:
        logger.warning("%s is there, but not its images; put them into %s", path, expected)
        return {}
    return {"source": {"name": reader, "path": str(path), "image_root": str(images), **options}}


class WebDataset(NamedTuple):
    """A data set: its name without ``wds_`` and ``_test``, its folder, and of ``WEBDATASETS`` the one that it is."""

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
        return WEBDATASETS[0]
    return text if text in WEBDATASETS else WEBDATASETS[0]
