"""ARO's relations and attributes: regions of Visual Genome, with the two sides of a relation or attribution swapped."""

from __future__ import annotations

from typing import Any

from mmjax.data.benchmarks.common import base
from mmjax.data.storage import filesystem


class Source(base.BenchmarkSource):
    """``visual_genome_relation.json`` or ``visual_genome_attribution.json``.

    Yuksekgonul et al. 2023, arXiv:2210.01936. A list of ``{image_path, bbox_x, bbox_y, bbox_w, bbox_h, true_caption,
    false_caption}`` with ``relation_name``, or with two ``attributes``, which are the group of a pair. A picture is cut
    to the box before anything else, as the authors do.

    Args:
      split: the benchmark has one, whatever its name.
      path: the file.
      image_root: the folder of the images.
      modalities: one name, for the pictures.
    """

    def __init__(self, split: str, *, path: str, image_root: str, modalities: tuple[str, ...] = ("image",)):
        root = filesystem.local_path(image_root)

        def make(_: Any, entry: Any) -> base.Row:
            is_relation = "relation_name" in entry
            kind = "relation" if is_relation else "attribution"
            group = str(entry["relation_name"]) if is_relation else "_".join(entry["attributes"][:2])
            x, y, width, height = (float(entry[f"bbox_{name}"]) for name in "xywh")
            image = filesystem.join(root, entry["image_path"])
            captions = ("true_caption", "false_caption")
            return base.pair(entry, image, kind, *captions, group=group, box=(x, y, width, height))

        path = filesystem.local_path(path)
        super().__init__(base.rows_of(path, base.entries_of(path, list), make), path=path, modalities=modalities)
