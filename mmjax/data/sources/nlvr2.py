"""Pairs of pictures with a statement that is true of both together or is not: the files of NLVR2."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.formats.image_files import ImageFiles
from mmjax.data.formats.json_lines import parse_json_lines
from mmjax.data.sample import Example, Unreadable
from mmjax.data.source import UnreadableEntry
from mmjax.data.storage import filesystem, path_patterns
from mmjax.data.storage.filesystem import MAX_MIB, MaxMib

LABELS = ("False", "True")


class _Statement(NamedTuple):
    pictures: tuple[str, str]  # left, right
    text: str
    answer: str | None
    statement: str  # equal for examples of one sentence


class Source(source.Source):
    """An example for each statement: it is the caption, and ``answer`` is ``True`` or ``False``.

    Lines of JSON as published (Suhr et al. 2019, arXiv:1811.00491): ``sentence``, ``label`` and ``identifier``
    (``dev-850-0-1``: split, set, pair and sentence). Pictures lie where NLVR2 puts them below ``image_root``:
    ``images/train/DIRECTORY/train-10171-0-img0.png``, ``dev/dev-850-0-img0.png``, ``test1/test1-0-0-img0.png``. Or a
    JSON list of {images, sentence, label}, ALBEF's files.

    ``statement`` is what the examples of one sentence share, by which consistency is measured. Examples of one pair
    share its ``id``.

    Args:
      split: replaces ``{split}`` in ``path``.
      path: a file, a list, a glob, ``a::b`` or ``{a,b}``.
      image_root: the folder that pictures are named from; the file's own if left out.
      modalities: two names, of the left picture and of the right one.
      protocols: of URLs that lists may name, as in the source ``captions``.
      max_mib: largest picture in MiB; a larger one is unreadable.
    """

    aligned = False
    rows_share_images = True

    def __init__(
        self,
        split: str,
        *,
        path: str | tuple[str, ...],
        image_root: str | None = None,
        modalities: tuple[str, ...] = ("left", "right"),
        protocols: tuple[str, ...] = (),
        max_mib: MaxMib = MAX_MIB,
    ):
        if len(modalities) != 2:
            raise ConfigError(f"modalities={tuple(modalities)!r}: examples have two pictures; use ('left', 'right')")
        self.modalities = tuple(modalities)
        paths = path_patterns.expand(path, split=split)
        self._files = ImageFiles.from_options(paths, image_root, protocols, max_mib)
        self.ignores_split = not path_patterns.has_split(path)
        self._examples: list[_Statement] = []
        self.unreadable: list[UnreadableEntry] = []
        for file in paths:
            for number, entry in _entries(file):
                try:
                    if isinstance(entry, Unreadable):
                        raise entry
                    example = _read(entry)
                    for name in example.pictures:
                        self._files.path_of(name)
                    self._examples.append(example)
                except Unreadable as error:
                    self.unreadable.append((f"{file}:{number}", error.reason, error.detail))
                except (KeyError, TypeError, AttributeError, ValueError) as error:
                    detail = f"no statement about two pictures ({error!r})"
                    self.unreadable.append((f"{file}:{number}", "bad row", detail))
        if not self._examples:
            first = self.unreadable[0] if self.unreadable else (paths[0], "bad row", "it is empty")
            raise ConfigError(f"path={path!r}: has no statements about pairs; the first problem: {': '.join(first)}")
        numbers: dict[tuple[str, str], int] = {}
        self._ids = [numbers.setdefault(example.pictures, len(numbers)) for example in self._examples]
        self._files.check_root([name for example in self._examples[:2] for name in example.pictures])

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        index = self.check_index(index)
        one = self._examples[index]
        example: Example = {"id": self._ids[index], "key": one.pictures[0], "captions": [one.text]}
        example |= {"statement": one.statement} | ({} if one.answer is None else {"answer": one.answer})
        pictures = zip(self.modalities, one.pictures, strict=True)
        return example | {modality: self._files.read(name, key=name) for modality, name in pictures}

    def column(self, name: str) -> np.ndarray:
        """A field of all examples: ``id``, ``answer`` or ``statement``."""
        if name == "id":
            return np.array(self._ids)
        if name in ("answer", "statement"):
            return np.array([getattr(example, name) or "" for example in self._examples])
        return super().column(name)


def _entries(path: str) -> Iterator[tuple[int, Any]]:
    try:
        data = filesystem.read(path).removeprefix(b"\xef\xbb\xbf")
    except (OSError, MemoryError) as error:
        raise ConfigError(f"path={path!r}: cannot be read ({error}); name a file") from None
    if not data.lstrip().startswith(b"["):
        return iter(parse_json_lines(data.split(b"\n")))
    try:
        return enumerate(json.loads(data), 1)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"path={path!r}: no JSON ({error}); copy it again") from None


def _read(entry: Any) -> _Statement:
    text, label = entry["sentence"], entry.get("label")
    if not isinstance(text, str) or not text.strip():
        raise Unreadable("no caption")
    answer = None if label is None else str(label).capitalize()
    if answer not in (None, *LABELS):
        raise ValueError(f"label {label!r}")
    if "images" in entry:
        left, right = entry["images"]
        return _Statement((str(left), str(right)), text, answer, str(entry.get("identifier", text)))
    split, number, pair, sentence = entry["identifier"].split("-")
    folder = f"images/train/{entry['directory']}" if split == "train" else split
    names = (f"{folder}/{split}-{number}-{pair}-img{side}.png" for side in range(2))
    return _Statement((next(names), next(names)), text, answer, f"{split}-{number}-{sentence}")
