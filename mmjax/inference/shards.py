"""A folder of shards: written by one or several processes, continued after a kill, with the same bytes in any case."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmjax.core.atomic import write_atomically
from mmjax.core.config import ConfigError
from mmjax.core.files import read_json_object
from mmjax.core.locks import Lock

UNREADABLE = b"unreadable"
"""The key in a table's metadata of the examples that are not in it: a JSON list of [key, reason, detail]."""

_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
"""Errors that no room on the disk would help."""

Content: TypeAlias = pa.Table | np.ndarray | Sequence[bytes]
_SUFFIXES = (".npy", ".array_record", ".parquet")


def shard_name(kind: str, number: int, shards: int, suffix: str) -> str:
    """The name of a shard's file, as ``images-00003-of-00012.parquet``."""
    return f"{kind}-{number:05d}-of-{shards:05d}{suffix}"


def check_plan(begun: Mapping[str, Any], plan: Mapping[str, Any], *, informative: Collection[str], where: str) -> None:
    """Raises ConfigError, which begins with ``where``, if what was begun has another plan."""
    for key in sorted((begun.keys() | plan.keys()) - set(informative)):
        old, new = begun.get(key), plan.get(key)
        if old != new:
            # What cannot be told apart by its own value, such as a digest, has a name beside it.
            names = [key, *(name for name in informative if begun.get(name) != plan.get(name))]
            first, second = (" ".join(f"{name}={values.get(name)!r}" for name in names) for values in (begun, plan))
            raise ConfigError(f"{where}: was begun with {first}, now it is {second}; use another name")


class ShardFolder:
    """The shards of one job.

    Args:
        path: The folder; made if it is not there.
        plan_name: The JSON file of the plan.
        plan: What decides the content of the shards. A folder that was begun with another one is refused.
        informative: Keys of the plan that may differ: names of things whose content another key identifies.
        kinds: Of files; each shard has a table ``KIND-NUMBER-of-SHARDS.parquet`` of each.
        suffixes: Of the files of each kind.
        shards: How many shards there are.
    """

    def __init__(
        self,
        path: Path,
        *,
        plan_name: str,
        plan: Mapping[str, Any],
        informative: Sequence[str] = (),
        kinds: Sequence[str],
        suffixes: Sequence[str] = (".parquet",),
        shards: int,
    ):
        self.path, self.shards = path, shards
        self._plan_name, self._plan, self._informative = plan_name, json.loads(json.dumps(plan)), set(informative)
        self._kinds, self._suffixes = tuple(kinds), tuple(suffixes)

    @contextlib.contextmanager
    def locked(self, process: int = 0) -> Iterator[None]:
        """Begins or continues the folder; refuses a folder of something else, and a second process of that number."""
        with self.write_errors():
            if self.path.exists() and not self.path.is_dir():
                raise ConfigError(f"--output={self.path}: is not a folder; name a new one")
            begun = self._read_plan()
            if begun is None and self.path.exists() and any(not p.name.startswith(".") for p in self.path.iterdir()):
                raise ConfigError(
                    f"--output={self.path}: holds other files, and no {self._plan_name}; name a new folder"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock = Lock(self.path / f".lock-{process}")
            except BlockingIOError:
                raise ConfigError(f"--output={self.path}: another process is writing it; wait for it") from None
        with lock:
            with self.write_errors():
                for temporary in self.path.glob(f".{process}.*.tmp"):
                    temporary.unlink(missing_ok=True)
                if begun is None:
                    text = json.dumps(self._plan, indent=1, ensure_ascii=False) + "\n"
                    write_atomically(self.path / self._plan_name, text.encode("utf-8", "backslashreplace"), sync=True)
            yield

    def missing(self) -> list[int]:
        """Numbers of the shards that are not complete."""
        return [
            number
            for number in range(self.shards)
            if not all(
                (self.path / shard_name(kind, number, self.shards, suffix)).is_file()
                for kind in self._kinds
                for suffix in self._suffixes
            )
        ]

    def table_path(self, kind: str, number: int) -> Path:
        """The path of a shard's table."""
        return self.path / shard_name(kind, number, self.shards, ".parquet")

    def write(self, number: int, files: Mapping[tuple[str, str], Content], *, process: int = 0) -> None:
        """Writes one shard: its files by kind and suffix. The tables come last, because they mark what is complete."""
        for suffix in _SUFFIXES:
            for (kind, ending), content in files.items():
                if ending == suffix:
                    self._write(self.path / shard_name(kind, number, self.shards, suffix), content, process)

    def rows(self, kind: str) -> int:
        """How many rows all shards of one kind have."""
        return sum(pq.read_metadata(self.table_path(kind, number)).num_rows for number in range(self.shards))

    def unreadable(self) -> list[list[str]]:
        """Key, reason and detail of all examples that are in no shard."""
        kind = self._kinds[0]
        entries = []
        for number in range(self.shards):
            metadata = pq.read_schema(self.table_path(kind, number)).metadata or {}
            entries += json.loads(metadata.get(UNREADABLE, b"[]"))
        return entries

    @contextlib.contextmanager
    def write_errors(self) -> Iterator[None]:
        """Turns the error of a full disk or of a place that is closed into one line; complete shards stay."""
        try:
            yield
        except (OSError, RuntimeError, pa.ArrowException) as error:  # RuntimeError is array_record's
            cause = getattr(error, "strerror", None) or " ".join(str(error).split())
            way_out = "make room there, then the same command continues from the complete shards"
            if getattr(error, "errno", None) in _CLOSED:
                way_out = "name a place that you may write to"
            raise ConfigError(f"--output={self.path}: cannot be written ({cause}); {way_out}") from error

    def _write(self, path: Path, content: Content, process: int) -> None:
        temporary = self.path / f".{process}.{path.name}.tmp"
        with self.write_errors():
            try:
                if path.suffix == ".array_record":
                    _write_records(temporary, content)
                with open(temporary, "ab" if path.suffix == ".array_record" else "wb") as file:
                    if isinstance(content, np.ndarray):
                        np.save(file, content)
                    elif isinstance(content, pa.Table):
                        pq.write_table(content, file, compression="none", use_dictionary=False)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def _read_plan(self) -> dict[str, Any] | None:
        path = self.path / self._plan_name
        if not path.exists():
            return None
        try:
            begun = read_json_object(path)
        except (ValueError, OSError) as error:
            raise ConfigError(f"--output={self.path}: {self._plan_name} cannot be read ({error})") from None
        check_plan(begun, self._plan, informative=self._informative, where=f"--output={self.path}")
        return begun


def _write_records(path: Path, records: Content) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    # Random access needs groups of one record; pictures are compressed already.
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    try:
        for record in records:
            writer.write(record)
    finally:
        writer.close()
