"""Where the files of a benchmark lie below a folder of data sets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

COCO_VAL2017 = ("coco/val2017", "coco/images/val2017", "coco2017/val2017", "val2017")


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
