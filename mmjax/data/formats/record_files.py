"""Random access to the records of ArrayRecord and TFRecord shards."""

from __future__ import annotations

import bisect
import itertools
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.sample import Unreadable
from mmjax.data.storage import filesystem, index_cache

READERS_KEPT = 256

Format = Literal["array_record", "tfrecord"]

_HEADER = struct.Struct("<QI")  # length and its checksum; the payload and its own checksum follow
_TRAILER = 4


class RecordFiles(Protocol):
    """Records by file and number; ``counts`` is per file, ``truncated`` says why some files end early."""

    paths: list[str]
    counts: np.ndarray
    truncated: dict[int, str]

    def read(self, file: int, number: int) -> bytes:
        """One record; Unreadable if the file is damaged there."""


def open_records(paths: Sequence[str], format: Format, *, max_mib: int) -> RecordFiles:
    """The records of files of one format; those of more than ``max_mib`` are unreadable."""
    return ArrayRecords(paths, max_mib=max_mib) if format == "array_record" else TFRecords(paths, max_mib=max_mib)


def sniff(path: str) -> Format:
    """The format of a file, by its content."""
    try:
        head = filesystem.read_range(path, 0, min(filesystem.size(path), _HEADER.size))
    except OSError as error:
        raise ConfigError(f"path={path!r}: cannot be read ({error}); name files of records") from None
    if len(head) == _HEADER.size:
        from tensorboardX.record_writer import masked_crc32c

        if masked_crc32c(head[:8]) == _HEADER.unpack(head)[1]:
            return "tfrecord"
    return "array_record"


class Spans:
    """The file and record of an example, from spans: ``take`` records of ``file`` from ``skip`` on."""

    def __init__(self, spans: Sequence[tuple[int, int, int]]):
        self._spans = [span for span in spans if span[2]]
        self._ends = list(itertools.accumulate(take for _, _, take in self._spans))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> tuple[int, int]:
        span = bisect.bisect_right(self._ends, number)
        file, skip, take = self._spans[span]
        return file, skip + number - (self._ends[span] - take)


class ArrayRecords:
    """ArrayRecord files on local paths."""

    truncated: dict[int, str]

    def __init__(self, paths: Sequence[str], *, max_mib: int = filesystem.MAX_MIB):
        self._max_mib = max_mib
        for path in paths:
            if filesystem.is_url(path):
                raise ConfigError(f"path={path!r}: ArrayRecord files are read from local paths; copy or mount them")
        self.paths = [filesystem.local_path(path) for path in paths]
        self.truncated = {}
        self.counts = index_cache.load_or_build("array_record counts", self.paths, self._count)["counts"]
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        """Without open files."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_lock", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def read(self, file: int, number: int) -> bytes:
        """One record; Unreadable if the file is damaged there."""
        if self._process != os.getpid():  # after a fork: open files would share their state
            self._reset()
        with self._lock:
            reader = self._open.pop(file, None)
            if reader is None:
                if not os.path.isfile(self.paths[file]):
                    key = f"{_base(self.paths[file])}:{number}"
                    raise Unreadable("missing file", "it was there at the start", key=key)
                reader = _array_reader(self.paths[file])
                if len(self._open) >= READERS_KEPT:
                    self._open.popitem(last=False)  # closed when its last reader is done
            self._open[file] = reader
        try:
            record = reader.read([number])[0]
        except (RuntimeError, IndexError) as error:
            with self._lock:
                self._open.pop(file, None)  # a failed reader may not recover
            raise Unreadable("truncated archive", _line(error), key=f"{_base(self.paths[file])}:{number}") from None
        filesystem.check_size(len(record), self._max_mib)
        return record

    def _count(self) -> dict[str, np.ndarray]:
        return {"counts": np.array([_count(path) for path in self.paths], np.int64)}

    def _reset(self) -> None:
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()


class TFRecords:
    """TFRecord files, through a cached index of offsets; building it verifies the checksums of the lengths."""

    def __init__(self, paths: Sequence[str], *, max_mib: int = filesystem.MAX_MIB):
        self.paths = list(paths)
        self._max_mib = max_mib
        arrays = index_cache.load_or_build("tfrecord offsets", self.paths, self._scan)
        self.counts = arrays["counts"]
        self.truncated = {int(file): str(why) for file, why in zip(arrays["truncated"], arrays["why"], strict=True)}
        self._begins = np.concatenate([[0], np.cumsum(self.counts)])
        self._offsets, self._lengths = arrays["offsets"], arrays["lengths"]

    def read(self, file: int, number: int) -> bytes:
        """One record; Unreadable if the file is shorter than when it was indexed."""
        if not 0 <= number < self.counts[file]:
            raise Unreadable("truncated archive", "the file ends before", key=f"{_base(self.paths[file])}:{number}")
        place = self._begins[file] + number
        filesystem.check_size(int(self._lengths[place]), self._max_mib)
        try:
            return filesystem.read_range(self.paths[file], int(self._offsets[place]), int(self._lengths[place]))
        except FileNotFoundError as error:
            raise Unreadable("missing file", _line(error), key=f"{_base(self.paths[file])}:{number}") from None

    def _scan(self) -> dict[str, np.ndarray]:
        frames = [list(_frames(path)) for path in self.paths]
        truncated = [file for file, entries in enumerate(frames) if entries and isinstance(entries[-1], str)]
        why = [str(frames[file].pop()) for file in truncated]
        both = np.array([frame for entries in frames for frame in entries], np.int64).reshape(-1, 2)
        return {
            "counts": np.array([len(entries) for entries in frames], np.int64),
            "offsets": both[:, 0],
            "lengths": both[:, 1],
            "truncated": np.array(truncated, np.int64),
            "why": np.array(why, np.str_),
        }


def _frames(path: str) -> Iterator[tuple[int, int] | str]:
    """Offset and length of each record's payload; and at last, if the file ends early, why."""
    from tensorboardX.record_writer import masked_crc32c

    try:
        end = filesystem.size(path)
        file = filesystem.open_file(path)
    except OSError as error:
        raise ConfigError(f"path={path!r}: cannot be read ({error}); name files of records") from None
    with file:
        if file.read(2) == b"\x1f\x8b":
            raise ConfigError(f"path={path!r}: is compressed by gzip, which has no random access; decompress it")
        offset = 0
        while offset < end:
            file.seek(offset)
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                yield "the file ends within a record"
                return
            length, checksum = _HEADER.unpack(header)
            if masked_crc32c(header[:8]) != checksum:
                if offset == 0:
                    raise ConfigError(f"path={path!r}: no TFRecord file (the first checksum is wrong); copy it again")
                yield f"the checksum at byte {offset} is wrong"
                return
            if offset + _HEADER.size + length + _TRAILER > end:
                yield "the file ends within a record"
                return
            yield offset + _HEADER.size, length
            offset += _HEADER.size + length + _TRAILER


def _count(path: str) -> int:
    filesystem.size(path)  # OSError where opening would wait for ever
    reader = _array_reader(path)
    count = reader.num_records() if reader.ok() else 0
    try:
        reader.close()
    except RuntimeError as error:
        reason = _line(error) or "its end is missing"
        raise ConfigError(f"path={path!r}: no readable ArrayRecord file ({reason}); copy it again") from None
    return count


def _array_reader(path: str) -> Any:
    from array_record.python import array_record_module

    # Without reading ahead: access is random.
    return array_record_module.ArrayRecordReader(path, options="readahead_buffer_size:0", file_reader_buffer_size=32768)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _base(path: str) -> str:
    return path.rpartition("/")[2]
