"""VALSE: captions and foils of five image collections, by linguistic phenomenon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.data.benchmarks.common import base
from mmjax.data.source import UnreadableEntry
from mmjax.data.storage import filesystem

PIECES = (
    "existence",
    "plurals",
    "counting-small-quant",
    "counting-hard",
    "counting-adversarial",
    "relations",
    "action-replacement",
    "actant-swap",
    "coreference-standard",
    "coreference-hard",
    "foil-it",
)
COLLECTIONS = ("visual7w", "SWiG", "coco2017", "COCO_train2014", "COCO_val2014", "VisualDialog_val2018")
"""Where pictures come from: the names that ``image_roots`` may have."""

_NAMES = {piece: piece for piece in PIECES} | {"relation": "relations"}  # of files: one piece has two
_VALID = 2  # of three annotators who took the caption and not the foil


class Source(base.BenchmarkSource):
    """The files ``PIECE.json`` of a folder (Parcalabescu et al. 2022, arXiv:2112.07566).

    Objects of ``{dataset, image_file, caption, foil, mturk: {caption}}``. Only valid foils are taken: those of which at
    least two of three annotators say that the caption fits and the foil does not.

    Args:
      split: the benchmark has one, whatever its name.
      path: the folder.
      image_roots: the folder of each collection: ``visual7w``, ``SWiG``, ``coco2017`` (val2017), ``COCO_train2014``,
        ``COCO_val2014`` and ``VisualDialog_val2018``. Pictures of others are listed as missing.
      modalities: one name, for the pictures.
    """

    def __init__(self, split: str, *, path: str, image_roots: dict[str, str], modalities: tuple[str, ...] = ("image",)):
        for name in image_roots:
            if name not in COLLECTIONS:
                raise ConfigError(f"image_roots.{name}: no such collection; use some of {', '.join(COLLECTIONS)}")
        roots = {name: filesystem.local_path(root) for name, root in image_roots.items()}
        folder = filesystem.local_path(path)
        files = [(piece, f"{folder}/{name}.json") for name, piece in _NAMES.items()]
        files = [(piece, file) for piece, file in files if filesystem.exists(file)]
        if not files:
            raise ConfigError(f"path={path!r}: has none of the files {', '.join(f'{p}.json' for p in PIECES)}")
        rows = (row for piece, file in files for row in _rows(file, piece, roots))
        super().__init__(rows, path=path, modalities=modalities)


def _rows(path: str, piece: str, roots: dict[str, str]) -> Iterator[base.Row | UnreadableEntry]:
    def make(_: Any, entry: Any) -> base.Row | tuple[()]:
        if entry["mturk"]["caption"] < _VALID:
            return ()
        collection = _collection(entry)
        root = roots.get(collection, f"image_roots.{collection}")  # is missing, and named so
        image = filesystem.join(root, entry["image_file"])
        return base.pair(entry, image, piece, "caption", "foil")

    return base.rows_of(path, base.entries_of(path, dict), make)


def _collection(entry: Any) -> str:
    """The name in ``COLLECTIONS``: two of the benchmark's own names stand for several folders of COCO."""
    prefix = entry["image_file"].rpartition("_")[0]
    return prefix if prefix in COLLECTIONS else entry["dataset"].replace("coco_2017", "coco2017")
