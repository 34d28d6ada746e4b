"""Parquet and Arrow files: columns of texts as a whole, images one at a time."""

from __future__ import annotations

import bisect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from mmjax.core.config import ConfigError
from mmjax.data.sample import Unreadable
from mmjax.data.storage import filesystem

GROUPS_KEPT = 4  # decoded row groups; one is often 100 to 1,000 pictures
FILES_KEPT = 64

_AT_A_TIME = 1 << 14
_ERRORS = (pa.ArrowException, OSError, ValueError)  # by damaged files


class Columns(Protocol):
    """Rows of one schema over several files."""

    schema: pa.Schema

    def __len__(self) -> int: ...
    def place(self, row: int) -> tuple[str, int]:
        """The file of a row, and its number in the file from 1."""

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, list[Sequence[Any]] | Unreadable]]:
        """Chunks of rows: the number of the first one, and values of columns ``names``; or why a row is unreadable."""

    def cell(self, name: str, row: int) -> Any:
        """One value, texts as bytes; Unreadable if the file is damaged there."""


class Parquet:
    """Rows of parquet files. Reading one image decodes its row group; the last few groups stay in memory."""

    def __init__(self, paths: Sequence[str]):
        self.paths = list(paths)
        self._groups: list[tuple[int, int]] = []  # file and number in it
        self._sizes: list[int] = []
        self._begins: list[int] = []  # of the files
        self._reset()
        for number, path in enumerate(self.paths):
            file = self._file(number)
            if number == 0:
                self.schema = file.schema_arrow
            elif file.schema_arrow.names != self.schema.names:
                raise ConfigError(
                    f"path={path!r}: its columns are {', '.join(file.schema_arrow.names)}, those of {self.paths[0]!r} "
                    f"{', '.join(self.schema.names)}; name files of one schema"
                )
            self._begins.append(sum(self._sizes))
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            if min(sizes, default=0) < 0 or sum(sizes) != file.metadata.num_rows:
                raise ConfigError(f"path={path!r}: no readable parquet file (its counts disagree); copy it again")
            self._groups += [(number, group) for group in range(len(sizes))]
            self._sizes += sizes
        self._ends = list(itertools.accumulate(self._sizes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict[str, Any]:
        """Without open files and decoded groups."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def place(self, row: int) -> tuple[str, int]:
        """The file of a row, and its number in the file from 1."""
        file = bisect.bisect_right(self._begins, row) - 1
        return self.paths[file], row - self._begins[file] + 1

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, list[Sequence[Any]] | Unreadable]]:
        """Chunks of rows; each row of a damaged row group is unreadable."""
        first = 0
        for (number, group), size in zip(self._groups, self._sizes, strict=True):
            try:
                with self._lock:
                    table = self._file(number).read_row_group(group, columns=list(names))
                table = table.cast(pa.schema([(field.name, _as_bytes(field.type)) for field in table.schema]))
                if table.num_rows != size:
                    raise ValueError(f"{table.num_rows} rows where {size} are announced")
                for start in range(0, size, _AT_A_TIME):
                    yield first + start, _rows(table.slice(start, _AT_A_TIME))
            except _ERRORS as error:
                for row in range(first, first + size):
                    yield row, _truncated(self.paths[number], error)
            first += size

    def cell(self, name: str, row: int) -> Any:
        """One value, texts as bytes; Unreadable if the file is damaged there."""
        group = bisect.bisect_right(self._ends, row)
        number, inner = self._groups[group]
        try:
            with self._lock:
                column = self._kept.get((name, group))
                if column is None:
                    column = self._file(number).read_row_group(inner, columns=[name]).column(name)
                    column = column.cast(_as_bytes(column.type))
                    self._kept[name, group] = column
                    if len(self._kept) > GROUPS_KEPT:
                        self._kept.popitem(last=False)
                else:
                    self._kept.move_to_end((name, group))
            return column[row - (self._ends[group] - self._sizes[group])].as_py()
        except (*_ERRORS, IndexError) as error:
            raise _truncated(self.paths[number], error) from None

    def _file(self, number: int) -> pq.ParquetFile:
        file = self._open.get(number)
        if file is None:
            path = filesystem.local_path(self.paths[number])
            try:
                file = pq.ParquetFile(filesystem.open_file(path) if filesystem.is_url(path) else _mapped(path))
            except _ERRORS as error:
                raise ConfigError(f"path={path!r}: no readable parquet file ({_line(error)}); copy it again") from None
            self._open[number] = file
            if len(self._open) > FILES_KEPT:
                self._open.popitem(last=False)
        return file

    def _reset(self) -> None:
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._kept: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()


class Arrow:
    """Rows of Arrow streams or Arrow files, memory-mapped: opening reads the offsets, no images."""

    def __init__(self, paths: Sequence[str]):
        self.paths = list(paths)
        self._map()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict[str, Any]:
        """The paths; another process maps the files itself."""
        return {"paths": self.paths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.paths = state["paths"]
        self._map()

    def place(self, row: int) -> tuple[str, int]:
        """The file of a row, and its number in the file from 1."""
        file = bisect.bisect_right(self._begins, row) - 1
        return self.paths[file], row - self._begins[file] + 1

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, list[Sequence[Any]] | Unreadable]]:
        """Chunks of rows."""
        for batch, end in zip(self._batches, self._ends, strict=True):
            chosen = batch.select(list(names))
            for start in range(0, batch.num_rows, _AT_A_TIME):
                yield end - batch.num_rows + start, _rows(chosen.slice(start, _AT_A_TIME))

    def cell(self, name: str, row: int) -> Any:
        """One value; texts are bytes."""
        place = bisect.bisect_right(self._ends, row)
        batch = self._batches[place]
        return batch.column(name)[row - (self._ends[place] - batch.num_rows)].as_py()

    def _map(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._begins: list[int] = []
        for path in self.paths:
            self._begins.append(sum(batch.num_rows for batch in self._batches))
            try:
                schema, batches = _arrow(filesystem.local_path(path))
            except _ERRORS as error:
                raise ConfigError(f"path={path!r}: no readable Arrow file ({_line(error)}); copy it again") from None
            if self._begins == [0]:
                self.schema = schema
            elif schema.names != self.schema.names:
                raise ConfigError(f"path={path!r}: its columns differ from those of {self.paths[0]!r}")
            self._batches += batches
        self._ends = list(itertools.accumulate(batch.num_rows for batch in self._batches))


def _arrow(path: str) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    source = pa.BufferReader(filesystem.read(path)) if filesystem.is_url(path) else _mapped(path)
    if bytes(source.read(6)) == b"ARROW1":
        file = pa.ipc.open_file(source)
        schema, batches = file.schema, [file.get_batch(i) for i in range(file.num_record_batches)]
    else:
        source.seek(0)
        stream = pa.ipc.open_stream(source)
        schema, batches = stream.schema, list(stream)
    # Validation keeps Arrow from following offsets out of the file. Texts are viewed as bytes, because one that is not
    # UTF-8 makes only its row bad; a view, unlike a cast, follows no offsets.
    raw = pa.schema([(field.name, _as_bytes(field.type)) for field in schema])
    for place, batch in enumerate(batches):
        batch.validate()
        columns = [_plain(column).view(field.type) for column, field in zip(batch.columns, raw, strict=True)]
        batches[place] = pa.RecordBatch.from_arrays(columns, schema=raw)
        batches[place].validate(full=True)
    return schema, batches


def _mapped(path: str) -> pa.MemoryMappedFile:
    filesystem.size(path)  # OSError for a pipe, whose opening waits for ever
    return pa.memory_map(path)


def _plain(column: pa.Array) -> pa.Array:
    if not pa.types.is_dictionary(column.type):
        return column
    column.validate(full=True)
    return column.dictionary_decode()


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """The type with bytes in place of texts, which may not be UTF-8."""
    if pa.types.is_dictionary(kind):
        return _as_bytes(kind.value_type)
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(_as_bytes(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_as_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _as_bytes(field.type)) for field in kind])
    return kind


def _rows(part: pa.Table | pa.RecordBatch) -> list[Sequence[Any]]:
    if not part.num_columns:
        return [()] * part.num_rows
    return list(zip(*(column.to_pylist() for column in part.columns), strict=True))


def _truncated(path: str, error: Exception) -> Unreadable:
    return Unreadable("truncated archive", _line(error), key=path)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
