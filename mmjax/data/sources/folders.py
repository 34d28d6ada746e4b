"""A folder of pictures: one folder a class, or pictures with their captions beside them."""

from __future__ import annotations

import json
import os
import posixpath
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.formats import classes
from mmjax.data.formats.image_files import ImageFiles
from mmjax.data.sample import Example, Unreadable
from mmjax.data.storage import filesystem, path_patterns
from mmjax.data.storage.filesystem import MAX_MIB, MaxMib
from mmjax.data.text import MaxCaptions, Norm, captions_of, why_not_utf8

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_CAPTION_FIELDS = ("captions", "caption")
_BESIDE = ("", ".txt", ".json", ".TXT", ".JSON")
_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
_DEEPEST = 32  # folders in folders


class Source(source.Source):
    """Images in ``path``, or in its folder with the split's name if there is one.

    A folder in it is a class (all pictures below it, at any depth); classes are numbered in the sorted order of the
    folders' names, empty ones too. A picture's captions are those beside it: the lines of ``NAME.txt``, or ``caption``
    or ``captions`` of ``NAME.json``. Without such a file they are prompts of its class; a picture with neither is
    listed in ``unreadable``. Extensions may be in upper case. Hidden files are ignored, and so are symbolic
    links to folders or out of the folder. Opening lists folders and reads no picture.

    Args:
      split: a folder in ``path``, or what replaces ``{split}`` there.
      path: the folder, or a URL that fsspec knows.
      modalities: only ``image``.
      class_names: what prompts and evaluation call the classes, in order; or a file: ``.json`` a list, an object from
        folders' names, or text with one a line. None: the folders' names, ``_`` as a space.
      templates: of prompts, with ``{}`` for the name: given so or as a file. None: ``a photo of a {}.``
      labels: whether folders are classes. None: unless every picture has its own captions.
      caption_norm: how captions are cleaned: ``none``, ``blip`` or ``albef`` (``mmjax.data.text.clean``).
      max_captions: captions an example, the first ones; all if left out.
      uncaptioned: pictures with neither captions nor a class are examples too, with an empty caption.
      max_mib: largest file of a picture or its captions in MiB; an example with a larger one is unreadable.
    """

    def __init__(
        self,
        split: str,
        *,
        path: str,
        modalities: tuple[str, ...] = ("image",),
        class_names: str | tuple[str, ...] | None = None,
        templates: str | tuple[str, ...] | None = None,
        labels: bool | None = None,
        caption_norm: Norm = "none",
        max_captions: MaxCaptions = None,
        uncaptioned: bool = False,
        max_mib: MaxMib = MAX_MIB,
    ):
        self.split = split
        self.modalities = tuple(modalities)
        if self.modalities != ("image",):
            raise ConfigError(f"modalities={self.modalities}: folders have pictures of one kind; use ('image',)")
        self._norm, self._most = caption_norm, max_captions
        self._root = _root(path, split)
        self.ignores_split = self._root == filesystem.local_path(path)  # neither {split} nor a folder of it
        self._image_files = ImageFiles(self._root, max_mib=max_mib)
        files = sorted(_files(self._root))
        text_files = {name for name in files if name.lower().endswith((".txt", ".json"))}
        pictures = [name for name in files if name.lower().endswith(EXTENSIONS)]
        if not pictures:
            raise ConfigError(f"path={path!r}: no picture in {self._root!r}; known are {', '.join(EXTENSIONS)}")
        beside = [_beside(name, text_files) for name in pictures]
        folders = _folders(self._root)
        self.class_names: list[str] | None = None
        self._labels: np.ndarray | None = None
        if labels if labels is not None else folders and not all(beside):
            self.class_names = _class_names(folders, class_names)
            numbers = {name: number for number, name in enumerate(folders)}
            self._labels = np.array([numbers.get(name.partition("/")[0], -1) for name in pictures], np.int32)
        elif class_names is not None:
            raise ConfigError(
                f"class_names={class_names!r}: there are no classes here; leave it out or set labels=True"
            )
        self.templates = classes.templates(templates) or list(classes.DEFAULT_TEMPLATES)
        usable = [place for place, text in enumerate(beside) if text or uncaptioned or self._label(place) is not None]
        kept = set(usable)
        self.unreadable: list[source.UnreadableEntry] = [
            (name, "no caption", "no text beside it, and no class")
            for place, name in enumerate(pictures)
            if place not in kept
        ]
        if not usable:
            raise ConfigError(
                f"path={path!r}: its pictures have neither captions beside them nor folders for classes; put a "
                "NAME.txt beside each, or use the source tables or captions"
            )
        self._names = np.array([os.fsencode(pictures[place]) for place in usable])
        self._beside = np.array([_BESIDE.index(beside[place]) for place in usable], np.uint8)
        self._labels = None if self._labels is None else self._labels[usable]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, place: int) -> Example:
        place = self.check_index(place)
        name, key, label = os.fsdecode(self._names[place]), self._key(place), self._label(place)
        example: Example = {"id": place, "key": key, "image": self._image_files.read(name, key=key)}
        if label is not None:
            example["label"] = label
        if end := _BESIDE[self._beside[place]]:
            path = posixpath.join(self._root, posixpath.splitext(name)[0] + end)
            values = _captions(path, key, self._image_files.max_mib)
        elif label is None:
            return {**example, "captions": [""]}
        else:
            assert self.class_names is not None
            values = classes.prompts(self.class_names[label], self.templates)
        example["captions"] = captions_of(values, key, norm=self._norm, most=self._most)
        return example

    def column(self, name: str) -> np.ndarray:
        """``key``, or ``label`` (-1: of no class)."""
        if name == "key":
            return np.array([self._key(place) for place in range(len(self))])
        if name == "label" and self._labels is not None:
            return self._labels.copy()
        known = ["key"] if self._labels is None else ["key", "label"]
        raise ConfigError(f"column {name!r}: this source has only {', '.join(known)}; choose one of them")

    def _key(self, place: int) -> str:
        return self._names[place].decode("utf-8", "backslashreplace")

    def _label(self, place: int) -> int | None:
        if self._labels is None or self._labels[place] < 0:
            return None
        return int(self._labels[place])


def _root(path: str, split: str) -> str:
    paths = path_patterns.expand([path], split=split)
    if len(paths) != 1 or not filesystem.is_folder(paths[0]):
        raise ConfigError(
            f"path={path!r}: expected one folder, found {len(paths)}, such as {paths[0]!r}; name a folder"
        )
    names = [name for name, inner in filesystem.list_entries(paths[0]) if inner]
    if split in names:
        return posixpath.join(paths[0], split)
    others = [name for name in names if name.lower() in _SPLITS]
    if others and "{split}" not in path:
        raise ConfigError(f"split={split!r}: path={path!r} has no such split; there are {', '.join(others)}")
    return filesystem.local_path(paths[0])


def _folders(root: str) -> list[str]:
    """Names of the folders in ``root`` that are gone through, in order."""
    names = [name for name, inner in filesystem.list_entries(root) if inner and not name.startswith(".")]
    return (
        names if filesystem.is_url(root) else [name for name in names if not os.path.islink(os.path.join(root, name))]
    )


def _files(root: str) -> list[str]:
    """Names of the files below ``root``, relative to it; hidden ones and what lies elsewhere left out."""
    files: list[str] = []
    home = None if filesystem.is_url(root) else os.path.join(os.path.realpath(filesystem.local_path(root)), "")
    pending = [("", 0)]
    while pending:
        prefix, depth = pending.pop()
        for name, is_folder in filesystem.list_entries(posixpath.join(root, prefix) if prefix else root):
            place = f"{prefix}/{name}" if prefix else name
            if name.startswith("."):
                continue
            if home is not None and not _stays(filesystem.local_path(posixpath.join(root, place)), home, is_folder):
                continue
            if not is_folder:
                files.append(place)
            elif depth < _DEEPEST:
                pending.append((place, depth + 1))
    return files


def _stays(path: str, home: str, is_folder: bool) -> bool:
    """Whether a name leads to what lies below ``home``; a folder that is a link would be met twice, or for ever."""
    return not os.path.islink(path) or (not is_folder and os.path.realpath(path).startswith(home))


def _beside(name: str, text_files: set[str]) -> str:
    """The extension of the file with a picture's captions; empty where there is none."""
    stem = posixpath.splitext(name)[0]
    return next((end for end in _BESIDE[1:] if stem + end in text_files), "")


def _captions(path: str, key: str, max_mib: int) -> Any:
    try:
        data = filesystem.read(path, max_mib=max_mib)
    except OSError as error:
        raise Unreadable("missing file", " ".join(str(error).split()), key=key) from None
    if path.lower().endswith(".txt"):
        return data.splitlines()
    try:
        fields = json.loads(data)
    except UnicodeDecodeError:
        raise Unreadable("caption is not UTF-8", f"{path}: {why_not_utf8(data)}", key=key) from None
    except (ValueError, RecursionError) as error:
        raise Unreadable("bad row", f"{path}: {error}", key=key) from None
    if isinstance(fields, dict):
        return next((fields[name] for name in _CAPTION_FIELDS if name in fields), None)
    return fields


def _class_names(folders: list[str], value: str | tuple[str, ...] | None) -> list[str]:
    if not folders:
        raise ConfigError("labels=True: there are no folders for classes; leave it out")
    names = classes.names(value)
    if names is None:
        return [name.replace("_", " ") for name in folders]
    if isinstance(names, dict):
        unknown = [name for name in folders if name not in names]
        if unknown:
            raise ConfigError(f"class_names={value!r}: says nothing of the folder {unknown[0]!r}; add it")
        return [names[name] for name in folders]
    if len(names) != len(folders):
        raise ConfigError(
            f"class_names={value!r}: {len(names)} names for {len(folders)} folders ({folders[0]!r} first); give as many"
        )
    return names
