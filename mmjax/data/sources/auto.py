"""Chooses the source for a path by its content, not by file names."""

from __future__ import annotations

import csv
import json
import posixpath
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from mmjax.core import plugins
from mmjax.core.config import ConfigError, bind, call
from mmjax.data import source
from mmjax.data.open_source import add_columns
from mmjax.data.sources.questions import FLICKR_IDS
from mmjax.data.storage import filesystem, path_patterns

_HEAD = 1 << 16
_RECORDS = re.compile(r"\.(array_?record|tfrecords?)(-\d+-of-\d+)?$")
_TABLES = re.compile(r"\.(csv|tsv|jsonl|ndjson|json|parquet|token|txt)$", re.IGNORECASE)
_PICTURES = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?)$", re.IGNORECASE)
_NAMES_PICTURES = re.compile(rb"\.(jpe?g|png|webp|bmp|gif|tiff?)\b", re.IGNORECASE)
_COMPRESSED_TAR = re.compile(r"\.(tar\.(gz|bz2|xz|zst)|tgz)$", re.IGNORECASE)
_VERSION = re.compile(r"\d+\.\d+\.\d+$")
_QUESTIONS = re.compile(r'"questions"\s*:\s*\[')
_PAIR = re.compile(r"[a-z]+\d?-\d+-\d+-\d+$")
_TOKEN = re.compile(r"[^\t#]+#\d+\t")
_NAMED = re.compile(r".+?\.(jpe?g|png|webp|bmp|gif)\s*,", re.IGNORECASE)


class Source(source.SourceView):
    """A view of the first of these sources that fits ``path``:

    =============  ==================================================================================================
    tfds           a folder with ``dataset_info.json`` and ``features.json``, or with folders of versions that have them
    webdataset     a tar archive; a folder of ``*.tar``, or with a folder of them for a split
    huggingface    a folder with ``dataset_dict.json`` or ``state.json``, or with parquet files (also in ``data/``)
    arrayrecord    an ArrayRecord or TFRecord file; a folder of them
    questions      JSON with ``questions``, as VQA's; an object a line with ``sentence2`` and a picture of Flickr30k
    nlvr2          an object a line with a ``sentence`` and an ``identifier`` such as ``dev-850-0-1``
    captions       JSON that is a list, or an object over several lines or with ``images``; ``image.jpg#0<tab>caption``;
                   ``image_name| comment_number| comment``; ``image.jpg,caption`` with unquoted commas in captions
    tables         parquet; an object a line; text whose first line names columns between tabs, commas, ; or |
    folders        a folder with pictures in it or in its folders
    =============  ==================================================================================================

    If ``path`` names several files, the first one decides. A folder with one table or caption file that names images
    is read as that file. Csv that both ``captions`` and ``tables`` can read is ``tables``. If the choice is wrong, name
    the source: ``data.source.name=tables``.

    Args:
      split: passed on; it also replaces ``{split}`` in ``path``.
      path: a file, a folder, a list, a glob, ``a::b`` or ``{0..9}``.
      modalities: passed on.
      options: of the chosen source.
      columns: further fields of each example, if the chosen source has such an option.
    """

    def __init__(
        self,
        split: str,
        *,
        path: str | tuple[str, ...],
        modalities: tuple[str, ...] = ("image",),
        options: dict[str, Any] | None = None,
        columns: tuple[str, ...] = (),
    ):
        self.name, single_path = recognize(path, split)
        target = plugins.load("mmjax.data.sources", self.name, path="data.source.name").Source
        injected = {"split": split, "path": single_path, "modalities": tuple(modalities)}
        try:
            bound = bind(target, dict(options or {}), path="options", injected=injected)
        except ConfigError as error:
            raise ConfigError(f"{error} (path={path!r} was taken for {self.name})") from None
        add_columns(target, bound, columns)
        super().__init__(call(target, bound, path="options", paths={name: name for name in injected}))


class PathContent(NamedTuple):
    """What the choice depends on."""

    path: str
    split: str
    head: bytes  # of a file; empty for a folder
    names: dict[str, bool]  # in a folder: name -> whether that is a folder

    @property
    def is_folder(self) -> bool:
        """Whether the path is a folder that is not empty."""
        return bool(self.names)

    def inner(self, *folders: str) -> list[str]:
        """Names of files in the first of these folders that exists."""
        folder = next((name for name in folders if self.names.get(name)), None)
        if folder is None:
            return []
        return [name for name, inner in filesystem.list_entries(posixpath.join(self.path, folder)) if not inner]

    def files(self) -> list[str]:
        """Names of the files in the folder, except hidden ones."""
        return [name for name, inner in self.names.items() if not inner and not name.startswith(".")]


def recognize(path: str | tuple[str, ...], split: str) -> tuple[str, str | tuple[str, ...]]:
    """The name of the source for ``path``, and the path for it."""
    first = path_patterns.expand(path, split=split)[0]
    content = look(first, split)
    name = _name(content)
    if name == "arrayrecord" and content.is_folder:
        return name, tuple(posixpath.join(first, file) for file in content.files() if _RECORDS.search(file))
    if name in (None, "folders") and (single := _single(content)):
        return single
    if name is not None:
        return name, path
    if content.is_folder:
        detail = f"it has {', '.join(map(repr, list(content.names)[:4]))}"
    else:
        detail = f"it begins with {content.head[:40]!r}" if content.head else "nothing is in it"
    looked = ", ".join(name for name, _ in SNIFFERS)
    raise ConfigError(f"path={path!r}: {first!r} is none of {looked} ({detail}); name the source: data.source.name=…")


def _name(content: PathContent) -> str | None:
    return next((name for name, fits in SNIFFERS if fits(content)), None)


def _single(content: PathContent) -> tuple[str, str] | None:
    """Source and path of a folder's only table or caption file that names images."""
    pictures = {posixpath.splitext(name)[0] for name in content.files() if _PICTURES.search(name)}
    known = []
    for name in content.files():
        if _TABLES.search(name) and posixpath.splitext(name)[0] not in pictures:
            file = look(posixpath.join(content.path, name), content.split)
            if (source := _name(file)) in ("tables", "captions") and _NAMES_PICTURES.search(file.head):
                known.append((source, file.path))
    return known[0] if len(known) == 1 else None


def look(path: str, split: str) -> PathContent:
    """Reads the beginning of a file, or the names in a folder."""
    if filesystem.is_folder(path):
        return PathContent(path, split, b"", dict(filesystem.list_entries(path)))
    return PathContent(path, split, filesystem.read_range(path, 0, min(filesystem.size(path), _HEAD)), {})


def _tfds(content: PathContent) -> bool:
    metadata = {"dataset_info.json", "features.json"}
    if metadata <= content.names.keys():
        return True
    versions = [name for name, inner in content.names.items() if inner and _VERSION.match(name)]
    return any(metadata <= set(content.inner(name)) for name in versions)


def _huggingface(content: PathContent) -> bool:
    if "dataset_dict.json" in content.names or {"state.json", "dataset_info.json"} <= content.names.keys():
        return True
    files = [*content.files(), *content.inner("data"), *content.inner(content.split)]
    return any(name.endswith(".parquet") for name in files)


def _webdataset(content: PathContent) -> bool:
    if not content.is_folder:
        # An archive without members is an end mark alone.
        is_empty_tar = content.path.endswith(".tar") and not content.head[:512].strip(b"\0")
        is_tar = content.head[257:262] == b"ustar" or is_empty_tar
        return is_tar or _COMPRESSED_TAR.search(content.path) is not None
    folders = [name for name, inner in content.names.items() if inner and not name.startswith(".")]
    here = [*content.files(), *content.inner(content.split, *folders)]
    return any(name.endswith(".tar") for name in here)


def _arrayrecord(content: PathContent) -> bool:
    if content.is_folder:
        return any(map(_RECORDS.search, content.files()))
    return _RECORDS.search(content.path) is not None and not _is_text(content.head)


def _questions(content: PathContent) -> bool:
    text = _start(content)
    if text[:1] == "{" and _QUESTIONS.search(text) and '"question_id"' in text:
        return True
    row = _first_row(text)
    return "sentence2" in row and not row.keys().isdisjoint(FLICKR_IDS)


def _nlvr2(content: PathContent) -> bool:
    row = _first_row(_start(content))
    return "sentence" in row and _PAIR.match(str(row.get("identifier"))) is not None


def _captions(content: PathContent) -> bool:
    text = _start(content)
    if text[:1] == "[":
        return True
    if text[:1] == "{":
        return not _is_object_a_line(text)
    lines = text.splitlines()[:20]
    if any(_TOKEN.match(line) for line in lines[:3]):
        return True
    if any(line.count("|") >= 2 and re.match(r"[^|]+\.jpe?g\|\s*\d+\|", line, re.IGNORECASE) for line in lines[1:3]):
        return True
    # As real csv, captions with unquoted commas would be cut there.
    rows = list(csv.reader(line for line in lines[:-1] or lines))
    cut = any(len(row) > 2 and _NAMED.match(line) for row, line in zip(rows, lines, strict=False))
    return bool(rows) and len(rows[0]) <= 2 and cut


def _tables(content: PathContent) -> bool:
    if content.head.startswith(b"PAR1"):
        return True
    text = _start(content)
    if text[:1] == "{":
        return _is_object_a_line(text)
    first = text.partition("\n")[0]
    return any(len(first.split(mark)) > 1 for mark in "\t,;|")


def _folders(content: PathContent) -> bool:
    if any(map(_PICTURES.search, content.files())):
        return True
    folders = [name for name, inner in content.names.items() if inner and not name.startswith(".")]
    tops = [content.split] if content.split in folders else folders
    return any(_has_pictures(posixpath.join(content.path, name), 2) for name in tops)


def _has_pictures(folder: str, depth: int) -> bool:
    entries = filesystem.list_entries(folder)
    if any(not inner and _PICTURES.search(name) for name, inner in entries):
        return True
    inner = [name for name, is_folder in entries if is_folder and not name.startswith(".")]
    return depth > 0 and any(_has_pictures(posixpath.join(folder, name), depth - 1) for name in inner)


def _start(content: PathContent) -> str:
    """The beginning of a text; empty if the file is not a text."""
    if not _is_text(content.head):
        return ""
    return content.head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").lstrip()


def _is_text(head: bytes) -> bool:
    return bool(head) and b"\0" not in head


def _is_object_a_line(text: str) -> bool:
    """Whether the first line is a JSON object that is a row, not a whole caption file."""
    row = _first_row(text)
    return bool(row) and not isinstance(row.get("images"), list)


def _first_row(text: str) -> dict[str, Any]:
    """The JSON object on the first line; empty if none is, as of an object over many lines."""
    try:
        value = json.loads(text.partition("\n")[0])
    except (ValueError, RecursionError):  # also of a line too long for a row
        return {}
    return value if isinstance(value, dict) else {}


SNIFFERS: tuple[tuple[str, Callable[[PathContent], bool]], ...] = (
    ("tfds", _tfds),
    ("webdataset", _webdataset),  # before parquet files, which img2dataset writes beside its shards
    ("huggingface", _huggingface),
    ("arrayrecord", _arrayrecord),
    ("questions", _questions),
    ("nlvr2", _nlvr2),
    ("captions", _captions),
    ("tables", _tables),
    ("folders", _folders),
)
"""Sources in the order of trial."""
