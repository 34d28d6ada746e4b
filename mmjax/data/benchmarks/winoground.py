"""Winoground: two pictures and two captions of the same words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.benchmarks.common.base import read_picture, text_of
from mmjax.data.formats.columnar import Parquet
from mmjax.data.formats.image_files import ImageFiles
from mmjax.data.formats.json_lines import parse_json_lines
from mmjax.data.formats.tables import picture_in
from mmjax.data.sample import Example, Unreadable
from mmjax.data.source import UnreadableEntry
from mmjax.data.storage import filesystem, path_patterns

_TAG = "collapsed_tag"
_COLUMNS = ("caption_0", "caption_1", _TAG)
_SUFFIXES = (".png", ".jpg", "")  # of the pictures, whose names have none

Cell = tuple[str, int]
"""Column and row of a parquet file."""


class _Side(NamedTuple):
    key: str
    caption: str
    kind: str
    picture: str | Cell


class Source(source.Source):
    """Winoground (Thrush et al. 2022, arXiv:2204.03162) as Hugging Face passes it on; examples 2k and 2k+1 are a pair.

    ``examples.jsonl`` with a folder of pictures, or parquet files that hold them: ``image_0``, ``image_1``,
    ``caption_0``, ``caption_1``, and ``collapsed_tag``, which is the pair's ``kind`` in lower case. A pair one of whose
    pictures does not exist is left out.

    Args:
      split: the benchmark has one, whatever its name.
      path: the file, or parquet files as a glob or a list.
      image_root: the folder of the pictures; None: parquet files hold them.
      modalities: one name, for the pictures.
    """

    group = 2
    ignores_split = True

    def __init__(
        self,
        split: str,
        *,
        path: str | tuple[str, ...],
        image_root: str | None = None,
        modalities: tuple[str, ...] = ("image",),
    ):
        if len(modalities) != 1:
            raise ConfigError(f"modalities={tuple(modalities)!r}: the benchmark has one picture an example; name one")
        self.modalities = tuple(modalities)
        paths = path_patterns.expand(path)
        self._files = ImageFiles.from_options(paths, image_root, (), filesystem.MAX_MIB)
        self._cells = Parquet(paths) if all(name.endswith(".parquet") for name in paths) else None
        rows = _json_rows(paths) if self._cells is None else _parquet_rows(self._cells)
        self._sides: list[_Side] = []
        unreadable: list[UnreadableEntry] = []
        for key, row in rows:
            try:
                if isinstance(row, Unreadable):
                    raise row
                self._sides += [self._side(key, row, i) for i in (0, 1)]
            except Unreadable as error:
                unreadable.append((error.key or key, error.reason, error.detail))
            except (LookupError, TypeError, ValueError) as error:
                unreadable.append((key, "bad row", f"{type(error).__name__}: {error}"))
        self.unreadable = unreadable
        if not self._sides:
            key, reason, detail = unreadable[0] if unreadable else (paths[0], "bad row", "no rows")
            raise ConfigError(f"path={path!r}: no pair can be used; the first problem: {key}: {reason} ({detail})")

    def __len__(self) -> int:
        return len(self._sides)

    def __getitem__(self, index: int) -> Example:
        index = self.check_index(index)
        key, caption, kind, picture = self._sides[index]
        if isinstance(picture, str):
            data = read_picture(picture)
        else:
            assert self._cells is not None
            data = picture_in(self._cells.cell(*picture), self._files, key=key)
        return {"id": index, "key": key, "captions": [caption], "kind": kind, self.modalities[0]: data}

    def _side(self, key: str, row: dict[str, Any], i: int) -> _Side:
        picture = row[f"image_{i}"]
        if isinstance(picture, str):
            picture = self._path_of(picture)
        return _Side(f"{key}/image_{i}", text_of(row, f"caption_{i}"), str(row.get(_TAG) or "").lower(), picture)

    def _path_of(self, name: str) -> str:
        paths = [self._files.path_of(f"{name}{suffix}") for suffix in _SUFFIXES]
        for path in paths:
            if filesystem.exists(path):
                return path
        raise Unreadable("missing file", "", key=paths[-1])


def _json_rows(paths: list[str]) -> Iterator[tuple[str, dict[str, Any] | Unreadable]]:
    for path in paths:
        try:
            lines = filesystem.read(path).split(b"\n")
        except OSError as error:
            raise ConfigError(f"path={path!r}: cannot be read ({error}); check the path") from None
        yield from ((f"{path}:{number}", row) for number, row in parse_json_lines(lines))


def _parquet_rows(cells: Parquet) -> Iterator[tuple[str, dict[str, Any] | Unreadable]]:
    names = [name for name in _COLUMNS if name in cells.schema.names]
    for first, rows in cells.rows(names):
        if isinstance(rows, Unreadable):
            yield f"{cells.place(first)[0]}:{cells.place(first)[1]}", rows
            continue
        for number, values in enumerate(rows, first):
            path, line = cells.place(number)
            texts = {name: (value or b"").decode() for name, value in zip(names, values, strict=True)}
            yield f"{path}:{line}", texts | {f"image_{i}": (f"image_{i}", number) for i in (0, 1)}
