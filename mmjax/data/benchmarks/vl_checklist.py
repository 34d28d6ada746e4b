"""VL-CheckList: true and false descriptions of objects, attributes and relations in pictures of VG, SWiG and HAKE."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Annotated, Any

from mmjax.core.config import ConfigError, Ge
from mmjax.data.benchmarks.common import base
from mmjax.data.source import UnreadableEntry
from mmjax.data.storage import filesystem

TYPES = ("Object", "Attribute", "Relation")

_SETTING = re.compile(rb"""^\s*(ANNO_PATH|IMG_ROOT)\s*:\s*["']?([^"'#\s]+)""", re.MULTILINE)


class Source(base.BenchmarkSource):
    """A checkout of the repository (Zhao et al. 2022, arXiv:2207.00221): ``corpus/v1/TYPE/…/SOURCE.yaml`` and ``data``.

    Each yaml file names a list ``[[image, {"POS": [text, …], "NEG": [text, …]}], …]`` in ``ANNO_PATH``, and a folder
    below ``image_root`` in ``IMG_ROOT``. The first text of each side is used. A pair's kind is the path of its yaml
    file, such as ``Attribute/color/vg``. Lists that are missing or empty, of which the repository has some, are left
    out.

    Args:
      split: the benchmark has one, whatever its name.
      path: the folder of the repository.
      image_root: the folder with ``vg``, ``swig`` and ``hake``.
      limit: pairs of each list, the first ones whose picture exists; 1000 is the authors' number, None takes all.
      modalities: one name, for the pictures.
    """

    def __init__(
        self,
        split: str,
        *,
        path: str,
        image_root: str,
        limit: Annotated[int, Ge(1, "leave it out for 1000")] | None = 1000,
        modalities: tuple[str, ...] = ("image",),
    ):
        folder, root = filesystem.local_path(path).rstrip("/"), filesystem.local_path(image_root).rstrip("/")
        corpus = f"{folder}/corpus/v1"
        files = sorted(file for kind in TYPES for file in filesystem.glob_paths(f"{corpus}/{kind}/**/*.yaml"))
        if not files:
            raise ConfigError(f"path={path!r}: has no corpus/v1/{{{','.join(TYPES)}}}/**/*.yaml; name a checkout")
        rows = (row for file in files for row in _rows(file, folder, corpus, root, limit))
        super().__init__(rows, path=path, modalities=modalities)


def _rows(file: str, folder: str, corpus: str, root: str, limit: int | None) -> Iterator[base.Row | UnreadableEntry]:
    kind = file.removeprefix(f"{corpus}/").removesuffix(".yaml")
    named = {key.decode(): value.decode() for key, value in _SETTING.findall(filesystem.read(file))}
    if missing := {"ANNO_PATH", "IMG_ROOT"} - named.keys():
        yield file, "bad row", f"{min(missing)} is missing"
        return
    path = f"{folder}/{named['ANNO_PATH']}"
    if not filesystem.exists(path):
        yield path, "missing file", f"named by {file}"
        return

    def make(_: Any, entry: Any) -> base.Row:
        name, texts = entry
        image = filesystem.join(root, f"{named['IMG_ROOT']}/{name}")
        first = {side: texts[side][0] for side in ("POS", "NEG")}
        return base.pair(first, image, kind, "POS", "NEG")

    exists, good = functools.cache(filesystem.exists), 0
    for row in base.rows_of(path, base.entries_of(path, list), make):
        yield row
        good += isinstance(row, base.Row) and exists(row.image)
        if good == limit:
            return
