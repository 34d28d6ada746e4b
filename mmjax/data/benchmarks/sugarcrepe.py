"""SugarCrepe and SugarCrepe++: captions of COCO with a hard negative each, by kind of change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.data.benchmarks.common import base
from mmjax.data.source import UnreadableEntry
from mmjax.data.storage import filesystem

KINDS = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")


class Source(base.BenchmarkSource):
    """The files ``KIND.json`` of a folder, as the authors pass them on.

    SugarCrepe (Hsieh et al. 2023, arXiv:2306.14610): objects ``{"0": {filename, caption, negative_caption}}``, whose
    keys may have gaps. SugarCrepe++ (Dumpala et al. 2024, arXiv:2406.11171): lists ``[{id, filename, caption, caption2,
    negative_caption}]`` without ``add``; each entry is two pairs, whose ``groups`` are equal.

    Args:
      split: the benchmark has one, whatever its name.
      path: the folder.
      image_root: the folder of COCO's ``val2017``.
      modalities: one name, for the pictures.
    """

    def __init__(self, split: str, *, path: str, image_root: str, modalities: tuple[str, ...] = ("image",)):
        files = {kind: f"{filesystem.local_path(path)}/{kind}.json" for kind in KINDS}
        files = {kind: file for kind, file in files.items() if filesystem.exists(file)}
        if not files:
            raise ConfigError(f"path={path!r}: has none of the files {', '.join(f'{k}.json' for k in KINDS)}")
        rows = (row for kind, file in files.items() for row in _rows(file, kind, filesystem.local_path(image_root)))
        super().__init__(rows, path=path, modalities=modalities)


def _rows(path: str, kind: str, root: str) -> Iterator[base.Row | UnreadableEntry]:
    def make(name: Any, entry: Any) -> list[base.Row]:
        image, group = filesystem.join(root, entry["filename"]), f"{kind} {name}"
        captions = ("caption", "caption2") if "caption2" in entry else ("caption",)
        return [base.pair(entry, image, kind, caption, "negative_caption", group=group) for caption in captions]

    return base.rows_of(path, base.entries_of(path), make)
