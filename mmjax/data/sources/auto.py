"""Whichever source suits what lies at a path, told by content rather than by names."""

from __future__ import annotations

import csv
import json
import posixpath
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from mmjax.core import plugins
from mmjax.core.config import ConfigError, bind
from mmjax.data.sample import Example
from mmjax.data.storage import filesystem, path_patterns

_HEAD = 1 << 16
_RECORDS = re.compile(r"\.(array_?record|tfrecords?)(-\d+-of-\d+)?$")
_TABLES = re.compile(r"\.(csv|tsv|jsonl|ndjson|json|parquet|token|txt)$", re.IGNORECASE)
_PICTURES = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?)$", re.IGNORECASE)
_NAMES_PICTURES = re.compile(rb"\.(jpe?g|png|webp|bmp|gif|tiff?)\b", re.IGNORECASE)
_COMPRESSED_TAR = re.compile(r"\.(tar\.(gz|bz2|xz|zst)|tgz)$", re.IGNORECASE)
_VERSION = re.compile(r"\d+\.\d+\.\d+$")
_TOKEN = re.compile(r"[^\t#]+#\d+\t")
_NAMED = re.compile(r".+?\.(jpe?g|png|webp|bmp|gif)\s*,", re.IGNORECASE)


class Source:
    """The source that fits ``path``; examples and all else are that source's own, and so are its options.

    What is looked for, the first that fits is taken:

    =============  ==================================================================================================
    tfds           a folder with ``dataset_info.json`` and ``features.json``, or with folders of versions that have them
    webdataset     a tar archive; a folder of ``*.tar``, or with a folder of them for a split
    huggingface    a folder with ``dataset_dict.json`` or ``state.json``, or with parquet files (also in ``data/``)
    arrayrecord    an ArrayRecord or TFRecord file; a folder of them
    captions       JSON that is a list, or an object over several lines or with ``images``; ``image.jpg#0<tab>caption``;
                   ``image_name| comment_number| comment``; ``image.jpg,caption`` with unquoted commas in captions
    tables         parquet; an object a line; text whose first line names columns between tabs, commas, ; or |
    folders        a folder with pictures in it or in its folders
    =============  ==================================================================================================

    Of a path that names several files the first one tells. A folder with a single table or caption file at its top that
    names pictures is that file. Csv that reads the same either way is ``tables``. A wrong guess is put right by naming
    the source: ``data.source.name=tables``.

    Args:
      split: passed on; it also replaces ``{split}`` in ``path``.
      path: a file, a folder, a list, a glob, ``a::b`` or ``{0..9}``.
      modalities: passed on.
      options: further arguments of the source that is found.
    """

    def __init__(
        self,
        split: str,
        *,
        path: str | tuple[str, ...],
        modalities: tuple[str, ...] = ("image",),
        options: dict[str, Any] | None = None,
    ):
        self.name, found = recognise(path, split)
        target = plugins.load("mmjax.data.sources", self.name, path="data.source.name").Source
        given = {"split": split, "path": found, "modalities": tuple(modalities)}
        try:
            bound = bind(target, dict(options or {}), path="options", given=given)
        except ConfigError as error:
            raise ConfigError(f"{error} (path={path!r} was taken for {self.name})") from None
        self._source = target(**bound)
        self.group: int = self._source.group
        self.modalities: tuple[str, ...] = self._source.modalities

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, place: int) -> Example:
        return self._source[place]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while being unpickled there is no source to ask
            raise AttributeError(name)
        return getattr(self._source, name)


class Facts(NamedTuple):
    """What is known of a path before anything is decided."""

    path: str
    split: str
    head: bytes  # of a file; empty for a folder
    names: dict[str, bool]  # in a folder: name -> whether that is a folder

    @property
    def is_folder(self) -> bool:
        """Whether it is one, with something in it."""
        return bool(self.names)

    def inner(self, *folders: str) -> list[str]:
        """Names of files in the first of these folders that there is."""
        folder = next((name for name in folders if self.names.get(name)), None)
        if folder is None:
            return []
        return [name for name, inner in filesystem.list_entries(posixpath.join(self.path, folder)) if not inner]

    def files(self) -> list[str]:
        """Names of the files in the folder itself, but hidden ones."""
        return [name for name, inner in self.names.items() if not inner and not name.startswith(".")]


def recognise(path: str | tuple[str, ...], split: str) -> tuple[str, str | tuple[str, ...]]:
    """The name of the source, and the path to give it."""
    first = path_patterns.expand(path, split=split)[0]
    facts = look(first, split)
    name = _name(facts)
    if name == "arrayrecord" and facts.is_folder:
        return name, tuple(posixpath.join(first, file) for file in facts.files() if _RECORDS.search(file))
    if name in (None, "folders") and (single := _single(facts)):
        return single
    if name is not None:
        return name, path
    if facts.is_folder:
        found = f"it has {', '.join(map(repr, list(facts.names)[:4]))}"
    else:
        found = f"it begins with {facts.head[:40]!r}" if facts.head else "nothing is in it"
    looked = ", ".join(name for name, _ in SNIFFERS)
    raise ConfigError(f"path={path!r}: {first!r} is none of {looked} ({found}); name the source: data.source.name=…")


def _name(facts: Facts) -> str | None:
    return next((name for name, fits in SNIFFERS if fits(facts)), None)


def _single(facts: Facts) -> tuple[str, str] | None:
    """A folder's only table or caption file: pictures beside it are then those that it names."""
    pictures = {posixpath.splitext(name)[0] for name in facts.files() if _PICTURES.search(name)}
    known = []
    for name in facts.files():
        if _TABLES.search(name) and posixpath.splitext(name)[0] not in pictures:
            file = look(posixpath.join(facts.path, name), facts.split)
            if (source := _name(file)) in ("tables", "captions") and _NAMES_PICTURES.search(file.head):
                known.append((source, file.path))
    return known[0] if len(known) == 1 else None


def look(path: str, split: str) -> Facts:
    """Reads what a decision needs: the beginning of a file, or the names in a folder."""
    if filesystem.is_folder(path):
        return Facts(path, split, b"", dict(filesystem.list_entries(path)))
    return Facts(path, split, filesystem.read_range(path, 0, min(filesystem.size(path), _HEAD)), {})


def _tfds(facts: Facts) -> bool:
    info = {"dataset_info.json", "features.json"}
    if info <= facts.names.keys():
        return True
    versions = [name for name, inner in facts.names.items() if inner and _VERSION.match(name)]
    return any(info <= set(facts.inner(name)) for name in versions)


def _huggingface(facts: Facts) -> bool:
    if "dataset_dict.json" in facts.names or {"state.json", "dataset_info.json"} <= facts.names.keys():
        return True
    files = [*facts.files(), *facts.inner("data"), *facts.inner(facts.split)]
    return any(name.endswith(".parquet") for name in files)


def _webdataset(facts: Facts) -> bool:
    if not facts.is_folder:
        # The end mark of an archive without members is all that there is of it.
        is_tar = facts.head[257:262] == b"ustar" or (facts.path.endswith(".tar") and not facts.head[:512].strip(b"\0"))
        return is_tar or _COMPRESSED_TAR.search(facts.path) is not None
    folders = [name for name, inner in facts.names.items() if inner and not name.startswith(".")]
    here = [*facts.files(), *facts.inner(facts.split, *folders)]
    return any(name.endswith(".tar") for name in here)


def _arrayrecord(facts: Facts) -> bool:
    if facts.is_folder:
        return any(map(_RECORDS.search, facts.files()))
    return _RECORDS.search(facts.path) is not None and not _is_text(facts.head)


def _captions(facts: Facts) -> bool:
    text = _start(facts)
    if text[:1] == "[":
        return True
    if text[:1] == "{":
        return not _is_object_a_line(text)
    lines = text.splitlines()[:20]
    if any(_TOKEN.match(line) for line in lines[:3]):
        return True
    if any(line.count("|") >= 2 and re.match(r"[^|]+\.jpe?g\|\s*\d+\|", line, re.IGNORECASE) for line in lines[1:3]):
        return True
    # Read as csv proper, captions with commas of their own would be cut there.
    rows = list(csv.reader(line for line in lines[:-1] or lines))
    cut = any(len(row) > 2 and _NAMED.match(line) for row, line in zip(rows, lines, strict=False))
    return bool(rows) and len(rows[0]) <= 2 and cut


def _tables(facts: Facts) -> bool:
    if facts.head.startswith(b"PAR1"):
        return True
    text = _start(facts)
    if text[:1] == "{":
        return _is_object_a_line(text)
    first = text.partition("\n")[0]
    return any(len(first.split(mark)) > 1 for mark in "\t,;|")


def _folders(facts: Facts) -> bool:
    if any(map(_PICTURES.search, facts.files())):
        return True
    folders = [name for name, inner in facts.names.items() if inner and not name.startswith(".")]
    tops = [facts.split] if facts.split in folders else folders
    return any(_has_pictures(posixpath.join(facts.path, name), 2) for name in tops)


def _has_pictures(folder: str, depth: int) -> bool:
    entries = filesystem.list_entries(folder)
    if any(not inner and _PICTURES.search(name) for name, inner in entries):
        return True
    inner = [name for name, is_folder in entries if is_folder and not name.startswith(".")]
    return depth > 0 and any(_has_pictures(posixpath.join(folder, name), depth - 1) for name in inner)


def _start(facts: Facts) -> str:
    """The beginning of a text; empty for what is none."""
    if not _is_text(facts.head):
        return ""
    return facts.head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").lstrip()


def _is_text(head: bytes) -> bool:
    return bool(head) and b"\0" not in head


def _is_object_a_line(text: str) -> bool:
    """Whether JSON is rows rather than one whole: its first line is an object that is no list of images."""
    line = text.partition("\n")[0]
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False  # one object over many lines, or a line too long for a row
    return isinstance(found, dict) and not isinstance(found.get("images"), list)


SNIFFERS: tuple[tuple[str, Callable[[Facts], bool]], ...] = (
    ("tfds", _tfds),
    ("webdataset", _webdataset),  # before parquet files, which img2dataset writes beside its shards
    ("huggingface", _huggingface),
    ("arrayrecord", _arrayrecord),
    ("captions", _captions),
    ("tables", _tables),
    ("folders", _folders),
)
"""Sources in the order in which they are tried."""
