"""Caption files of COCO, Flickr8k and Flickr30k, in the formats in which they are passed on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.formats.caption_table import CaptionTable
from mmjax.data.formats.image_files import ImageFiles, one_modality
from mmjax.data.formats.row_builder import BadRow, Row
from mmjax.data.formats.tables import ColumnMapping
from mmjax.data.sample import Example
from mmjax.data.storage import filesystem, path_patterns
from mmjax.data.storage.filesystem import MAX_MIB, MaxMib
from mmjax.data.text import MaxCaptions, Norm, why_not_utf8

Format = Literal["auto", "karpathy", "coco", "list", "csv", "results", "token"]

Rows = Iterator[Row | BadRow]

_NAMED = re.compile(r"(.+?\.(?:jpe?g|png|webp|bmp|gif))\s*,(.*)", re.IGNORECASE)
_TOKEN = re.compile(r"([^\t#]+)#\d+\t(.*)")


class Source(source.Source):
    """Images and their captions from caption files, whose format is recognized by content.

    ``karpathy``  ``dataset_coco.json``, ``dataset_flickr30k.json``, ``dataset_flickr8k.json``: all splits in one file
    ``coco``      ``captions_val2017.json``: images and annotations
    ``list``      a JSON list of {image, caption}, caption one text or several (ALBEF, BLIP and others)
    ``csv``       ``image.jpg,caption`` after a line of names; the caption may hold commas
    ``results``   Kaggle's Flickr30k: ``image_name| comment_number| comment``
    ``token``     ``image.jpg#0<tab>caption``

    Captions of one image become one example, in the file's order. Unusable entries are listed in ``unreadable``.
    Images are named as in the source ``tables``.

    Args:
      split: one of the file's splits for ``karpathy``; replaces ``{split}`` in ``path`` and ``split_file``.
      path: a file, a list, a glob, ``a::b`` or ``{a,b}``.
      modalities: one name, for the images.
      format: as above; ``auto`` looks at the content.
      image_root: the folder that images are named from; the file's own if left out.
      split_file: a text file with the names of the images to take, one a line (Flickr8k has such ones).
      restval: ``train`` of a Karpathy file includes ``restval``, as is usual for COCO.
      caption_norm: ``none``, ``blip`` or ``albef`` (``mmjax.data.text.clean``); retrieval numbers depend on it.
      max_captions: captions an image, the first ones; all if left out. Retrieval on COCO and Flickr usually takes 5.
      protocols: of URLs that rows may name besides the table's own protocol, such as ``https``. None by default: a
        table from elsewhere could have any address read. Every part of ``zip://a.png::https://…`` counts.
      max_mib: largest picture in MiB; a larger one is unreadable.
    """

    def __init__(
        self,
        split: str,
        *,
        path: str | tuple[str, ...],
        modalities: tuple[str, ...] = ("image",),
        format: Format = "auto",
        image_root: str | None = None,
        split_file: str | None = None,
        restval: bool = True,
        caption_norm: Norm = "none",
        max_captions: MaxCaptions = None,
        protocols: tuple[str, ...] = (),
        max_mib: MaxMib = MAX_MIB,
    ):
        self.modalities = one_modality(modalities)
        paths = path_patterns.expand(path, split=split)
        self._files = ImageFiles.from_options(paths, image_root, protocols, max_mib)
        formats: set[str] = set()
        rows: Rows = (row for file in paths for row in _rows(file, format, split, restval, formats))
        if split_file is not None:
            rows = _only(rows, path_patterns.expand(split_file, split=split, key="split_file"))
        self._table = CaptionTable(rows, check_name=self._files.path_of, norm=caption_norm, most=max_captions)
        self._table.check_not_empty(path)
        named = path_patterns.has_split(path) or path_patterns.has_split(split_file or "")
        self.ignores_split = not named and formats != {"karpathy"}
        self.unreadable = self._table.unreadable
        assert self._table.keys is not None
        self._files.check_root(self._table.keys[:4].to_pylist())

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Example:
        index = self.check_index(index)
        key = self._table.name(index)
        return {**self._table.example(index, key=key), self.modalities[0]: self._files.read(key, key=key)}

    def column(self, name: str) -> np.ndarray:
        """A field of all examples: ``id``, ``key`` or ``captions``."""
        return self._table.column(name)


def _rows(path: str, format: str, split: str, restval: bool, formats: set[str]) -> Rows:
    """The rows of one file, whose format is added to ``formats``."""
    try:
        data = filesystem.read(path).removeprefix(b"\xef\xbb\xbf")
    except (OSError, MemoryError) as error:
        raise ConfigError(f"path={path!r}: cannot be read ({error}); name a file") from None
    is_json = format in ("karpathy", "coco", "list") or (format == "auto" and data.lstrip()[:1] in (b"{", b"["))
    if not is_json:
        lines = [line.decode("utf-8", "surrogateescape").rstrip("\r") for line in data.split(b"\n")]
        kind = _line_format(lines, path) if format == "auto" else format
        formats.add(kind)
        return _LINES[kind](path, lines)
    try:
        content = json.loads(data)
    except UnicodeDecodeError:
        raise ConfigError(f"path={path!r}: not UTF-8 ({why_not_utf8(data)}); save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        way_out = "a file with one object a line is for the source 'tables'"
        raise ConfigError(f"path={path!r}: no JSON ({error}); copy it again; {way_out}") from None
    kind = _json_format(content, path) if format == "auto" else format
    formats.add(kind)
    try:
        if kind == "karpathy":
            return _karpathy(path, list(content["images"]), split, restval)
        if kind == "coco":
            return _coco(path, list(content["images"]), list(content["annotations"]))
        return _list(path, list(content))
    except (TypeError, KeyError) as error:
        raise ConfigError(f"format={kind!r}: {path!r} is none ({error} is missing); leave format out") from None


def _json_format(content: Any, path: str) -> str:
    if isinstance(content, list):
        return "list"
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        if isinstance(content.get("annotations"), list):
            return "coco"
        if any(isinstance(image, dict) and "sentences" in image for image in content["images"][:100]):
            return "karpathy"
    raise ConfigError(
        f"path={path!r}: no caption file; expected a list of {{image, caption}}, or images with sentences (Karpathy) "
        "or annotations (COCO)"
    )


def _karpathy(path: str, images: list[Any], split: str, restval: bool) -> Rows:
    there = sorted({str(image.get("split")) for image in images if isinstance(image, dict)})
    wanted = {"train", "restval"} if split == "train" and restval else {split}
    if split not in there:
        raise ConfigError(f"split={split!r}: {path!r} has no such split; there are {', '.join(there)}")

    def rows() -> Rows:
        for number, image in enumerate(images, 1):
            if not isinstance(image, dict):
                yield BadRow(path, number, "bad row", "an image is no object")
            elif image.get("split") in wanted:
                sentences = image.get("sentences")
                texts = [s.get("raw") if isinstance(s, dict) else s for s in sentences or ()]
                name = image.get("filename")
                folder = image.get("filepath")
                yield Row(path, number, f"{folder}/{name}" if folder and name else name, texts)

    return rows()


def _coco(path: str, images: list[Any], annotations: list[Any]) -> Rows:
    texts: dict[Any, list[Any]] = {}
    broken = []
    for number, image in enumerate(images, 1):
        if not isinstance(image, dict) or not isinstance(image.get("id"), (int, str)):
            broken.append(BadRow(path, number, "bad row", "an image has no id"))
        elif texts.setdefault(image["id"], []):
            broken.append(BadRow(path, number, "duplicate key", f"image id {image['id']}"))
    for number, annotation in enumerate(annotations, 1):
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if isinstance(image_id, (int, str)) and image_id in texts:
            texts[image_id].append(annotation.get("caption"))
        else:
            broken.append(BadRow(path, number, "bad row", f"annotation {number} is of no image"))

    def rows() -> Rows:
        yield from broken
        for number, image in enumerate(images, 1):
            if isinstance(image, dict) and isinstance(image.get("id"), (int, str)):
                yield Row(path, number, image.get("file_name"), texts[image["id"]])

    return rows()


def _list(path: str, items: list[Any]) -> Rows:
    first = next((item for item in items if isinstance(item, dict)), None)
    if first is None:
        raise ConfigError(f"path={path!r}: a list without objects; expected {{image, caption}}")
    columns = ColumnMapping().among(list(first), path)

    def rows() -> Rows:
        names = [name for _, name in columns.all()]
        take = columns.taker(names)
        for number, item in enumerate(items, 1):
            if isinstance(item, dict):
                yield Row(path, number, *take([item.get(name) for name in names]))
            else:
                yield BadRow(path, number, "bad row", "no object")

    return rows()


def _line_format(lines: Sequence[str], path: str) -> str:
    for line in lines[:3]:
        if _TOKEN.match(line):
            return "token"
        if line.count("|") >= 2:
            return "results"
        if _NAMED.match(line):
            return "csv"
    raise ConfigError(f"path={path!r}: no caption file that is known; other tables are for the source 'tables'")


def _csv(path: str, lines: Sequence[str]) -> Rows:
    for number, line in enumerate(lines, 1):
        if match := _NAMED.match(line):
            caption = match[2].strip()
            # Some copies quote captions that hold commas, as csv does, and some do not.
            inner = caption[1:-1].replace('""', "\0")
            if len(caption) > 1 and caption[0] == caption[-1] == '"' and '"' not in inner:
                caption = inner.replace("\0", '"')
            yield Row(path, number, match[1], caption)
        elif line.strip() and number > 1:
            yield BadRow(path, number, "bad row", "expected image.jpg,caption")


def _results(path: str, lines: Sequence[str]) -> Rows:
    for number, line in enumerate(lines, 1):
        name, *rest = line.split("|", 2)
        if len(rest) == 2:
            if number > 1 or name.strip() != "image_name":
                yield Row(path, number, name, rest[1])
        elif line.strip():
            yield BadRow(path, number, "bad row", "expected image| number| caption")


def _token(path: str, lines: Sequence[str]) -> Rows:
    for number, line in enumerate(lines, 1):
        if match := _TOKEN.match(line):
            yield Row(path, number, match[1], match[2])
        elif line.strip():
            yield BadRow(path, number, "bad row", "expected image#number, a tab and the caption")


_LINES: dict[str, Callable[[str, Sequence[str]], Rows]] = {"csv": _csv, "results": _results, "token": _token}


def _only(rows: Rows, paths: Sequence[str]) -> Rows:
    """The rows of images that are named in the files; a named one without a row has no caption."""
    wanted: dict[str, tuple[str, int]] = {}
    for path in paths:
        for number, line in enumerate(filesystem.read(path).decode("utf-8", "surrogateescape").splitlines(), 1):
            if line.strip():
                wanted.setdefault(line.strip(), (path, number))
    seen = set()
    for row in rows:
        if isinstance(row, BadRow):
            yield row
        elif isinstance(row.image, str) and row.image.strip() in wanted:
            seen.add(row.image.strip())
            yield row
    for name, (path, number) in wanted.items():
        if name not in seen:
            yield BadRow(path, number, "no caption", f"{name} is in no row")
