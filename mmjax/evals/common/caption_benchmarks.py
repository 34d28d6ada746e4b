"""Where COCO, Flickr30k and Flickr8k lie below a folder of data sets, in the formats in which they are passed on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmjax.evals.common.folders import COCO_VAL2017, find_webdatasets, first_of

logger = logging.getLogger(__name__)

_COCO_2014 = ("coco", "coco/images", "coco2014", "")
_FLICKR30K = (
    "flickr30k/images", "flickr30k/flickr30k-images", "flickr30k/flickr30k_images", "flickr30k/Images", "flickr30k",
)  # fmt: skip
_FLICKR8K = ("flickr8k/images", "flickr8k/Images", "flickr8k/Flicker8k_Dataset", "flickr8k")


class Layout(NamedTuple):
    """One way in which a data set is passed on."""

    dataset: str
    annotations: tuple[str, ...]  # files, the first that exists
    images: tuple[str, ...]  # folders that the annotations name images from
    holding: str = ""  # a folder that must be in that of the images

    def find(self, root: Path) -> tuple[Path | None, Path | None]:
        """The annotations below ``root`` and the folder of the images, each if it is there."""
        path = next((root / name for name in self.annotations if (root / name).is_file()), None)
        return path, first_of(root, self.images, holding=self.holding)

    @property
    def expected(self) -> str:
        """Where the images may lie, for the log."""
        return str(Path(self.images[0]) / self.holding)


LISTS = (
    Layout(
        "coco",
        ("coco/coco_karpathy_test.json", "coco/annotations/coco_karpathy_test.json", "coco_karpathy_test.json"),
        _COCO_2014,
        "val2014",
    ),
    Layout(
        "flickr30k", ("flickr30k/flickr30k_test.json", "flickr30k_test.json"), ("flickr30k", ""), "flickr30k-images"
    ),
)
"""The lists of ALBEF and BLIP: {image, caption: [...]}."""

LAYOUTS = (
    # Karpathy's files have all splits, the lists of ALBEF and BLIP one.
    Layout("coco", ("coco/dataset_coco.json", "coco/annotations/dataset_coco.json"), _COCO_2014, "val2014"),
    LISTS[0],
    Layout("coco_val2017", ("coco/annotations/captions_val2017.json", "coco/captions_val2017.json"), COCO_VAL2017),
    Layout("flickr30k", ("flickr30k/dataset_flickr30k.json",), _FLICKR30K),
    LISTS[1],
    Layout("flickr30k", ("flickr30k/flickr30k_test_karpathy.txt", "flickr30k/flickr30k_test.csv"), _FLICKR30K),
    Layout("flickr8k", ("flickr8k/dataset_flickr8k.json",), _FLICKR8K),
    Layout("flickr8k", ("flickr8k/flickr8k_test_karpathy.txt", "flickr8k/flickr8k_test.csv"), _FLICKR8K),
)

PARQUET = {
    "coco": ("mscoco_2014_5k_test_image_text_retrieval", "coco_parquet"),
    "flickr30k": ("flickr_1k_test_image_text_retrieval", "flickr30k_parquet"),
}
"""Folders of Hugging Face's parquet files, which hold the pictures."""


def find_captions(root: Path) -> dict[str, dict[str, Any]]:
    """Sources of the test splits by the data set's name; the first layout counts that is there with its images."""
    sources: dict[str, dict[str, Any]] = {}
    for name, source in (*_files(root), *_parquet(root), *_webdatasets(root)):
        sources.setdefault(name, source)
    return sources


def _files(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for layout in LAYOUTS:
        path, images = layout.find(root)
        if path is None:
            continue
        if images is None:
            logger.warning(
                "%s: %s is there, but not its images; put them into %s", layout.dataset, path, layout.expected
            )
            continue
        yield layout.dataset, {"name": "captions", "path": str(path), "image_root": str(images)}


def _parquet(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for dataset, names in PARQUET.items():
        if (folder := first_of(root, names)) is not None:
            yield dataset, {"name": "huggingface", "path": str(folder)}


def _webdatasets(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    names = {"mscoco_captions": "coco", "mscoco_captions2014": "coco"}  # as CLIP_benchmark calls them
    for data in find_webdatasets(root):
        if data.kind == "retrieval":
            yield names.get(data.name, data.name), {"name": "webdataset", "path": str(data.path)}
