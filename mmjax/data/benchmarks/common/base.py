"""What benchmarks have in common: pictures that annotations name, regions of them, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from mmjax.core.config import ConfigError
from mmjax.data import pictures, source
from mmjax.data.sample import Example, Unreadable
from mmjax.data.source import UnreadableEntry
from mmjax.data.storage import filesystem
from mmjax.data.text import Norm, clean

Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels of the upright picture."""


class Row(NamedTuple):
    """One annotation of a picture."""

    image: str  # its path
    captions: tuple[str, ...]
    fields: dict[str, Any]  # an entry of lists that the picture's example has
    box: Box | None = None  # the region that is the example's picture; all of it if None


class BenchmarkSource(source.Source):
    """Base class of a benchmark: annotations of one picture, or of one region, become one example.

    So each picture is embedded once, whatever the number of its captions. Bad annotations and pictures that do not
    exist are listed in ``unreadable``; ConfigError if nothing is left.

    Args:
      rows: the annotations.
      path: of the benchmark, for errors.
      modalities: one name, for the pictures.
    """

    ignores_split = True  # a benchmark is the test data

    def __init__(self, rows: Iterable[Row | UnreadableEntry], *, path: str, modalities: tuple[str, ...]):
        if len(modalities) != 1:
            raise ConfigError(f"modalities={tuple(modalities)!r}: the benchmark has one picture an example; name one")
        self.modalities = tuple(modalities)
        examples: dict[tuple[str, Box | None], dict[str, Any]] = {}
        unreadable: list[UnreadableEntry] = []
        for row in rows:
            if not isinstance(row, Row):
                unreadable.append(row)
                continue
            example = examples.setdefault((row.image, row.box), {"captions": {}})
            example["captions"].update(dict.fromkeys(row.captions))
            for name, value in row.fields.items():
                example.setdefault(name, []).append(value)
        names = list(dict.fromkeys(image for image, _ in examples))
        there = dict(zip(names, filesystem.map_paths(filesystem.exists, names), strict=True))
        unreadable += [(name, "missing file", "") for name in names if not there[name]]
        self._examples = [(image, box, e) for (image, box), e in examples.items() if there[image]]
        self.unreadable = unreadable
        if not self._examples:
            key, reason, detail = unreadable[0] if unreadable else (path, "bad row", "no annotations")
            raise ConfigError(
                f"path={path!r}: nothing of the benchmark can be used; the first problem: {key}: {reason}"
                f"{f' ({detail})' if detail else ''}; check image_root"
            )

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        index = self.check_index(index)
        image, box, example = self._examples[index]
        data = read_picture(image)
        picture = data if box is None else cut(data, box, key=image)
        fields = example | {"captions": list(example["captions"])}
        return {"id": index, "key": image, **fields, self.modalities[0]: picture}


def read_picture(path: str) -> bytes:
    """The encoded bytes of a picture."""
    try:
        return filesystem.read(path)
    except OSError as error:
        raise Unreadable("missing file", " ".join(str(error).split()), key=path) from None


def cut(data: bytes, box: Box, *, key: str) -> bytes:
    """The region of a picture that lies in ``box``, as a file without compression (PPM)."""
    pixels = pictures.decode(data, key=key)
    left, top, width, height = (round(number) for number in box)
    region = pixels[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    if not region.size:
        raise Unreadable(
            "empty image", f"the box {box} holds no pixel of {pixels.shape[1]} x {pixels.shape[0]}", key=key
        )
    return b"P6 %d %d 255\n" % (region.shape[1], region.shape[0]) + region.tobytes()


def read_json(path: str) -> Any:
    """The content of a JSON file."""
    try:
        return json.loads(filesystem.read(path).removeprefix(b"\xef\xbb\xbf"))
    except (OSError, MemoryError) as error:
        raise ConfigError(f"path={path!r}: cannot be read ({error}); check the path") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"path={path!r}: no JSON ({error}); copy it again") from None


def rows_of(
    path: str, entries: Iterable[tuple[Any, Any]], make: Callable[[Any, Any], Row | Sequence[Row]]
) -> Iterator[Row | UnreadableEntry]:
    """``make(name, entry)`` of each entry of a file; or why it is bad, under the names of the file and the entry.

    Args:
      path: of the file.
      entries: names and entries.
      make: to one row or several; may raise what wrong types and missing keys raise.
    """
    for name, entry in entries:
        try:
            made = make(name, entry)
            yield from [made] if isinstance(made, Row) else made
        except Unreadable as error:
            yield f"{path}:{name}", error.reason, error.detail
        except (LookupError, TypeError, ValueError) as error:
            yield f"{path}:{name}", "bad row", f"{type(error).__name__}: {error}"


def entries_of(path: str, kinds: Any = (dict, list)) -> list[tuple[Any, Any]]:
    """Names and entries of a JSON object, or numbers and entries of a list; ConfigError if the file is none of those.

    Args:
      path: of the file.
      kinds: dict, list or both.
    """
    content: Any = read_json(path)
    if not isinstance(content, kinds):
        raise ConfigError(f"path={path!r}: a JSON {type(content).__name__} is no such benchmark; check the file")
    return list(content.items()) if isinstance(content, dict) else list(enumerate(content))


def text_of(entry: Any, key: str | int, *, norm: Norm = "none") -> str:
    """A text of an annotation, cleaned."""
    if not isinstance(entry[key], str):
        raise TypeError(f"{key} is of type {type(entry[key]).__name__}")
    text = clean(entry[key], norm=norm)
    if not text:
        raise Unreadable("no caption", f"{key} is empty")
    return text


def pair(entry: Any, image: str, kind: str, true: str, false: str, *, group: str = "", box: Box | None = None) -> Row:
    """The row of a true and a false caption, which are the texts of those keys."""
    texts = text_of(entry, true), text_of(entry, false)
    return Row(image, texts[:1], {"negatives": (kind, *texts), "groups": group}, box)
