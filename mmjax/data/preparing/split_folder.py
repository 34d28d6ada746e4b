"""The folder of a prepared data set: TFDS's layout, the options of each split, and which shards are finished.

NAME/VERSION/dataset_info.json, features.json          once a split is complete
NAME/VERSION/NAME-train.array_record-00000-of-00008
NAME/VERSION/unreadable.jsonl                             {"split", "key", "reason", "detail"} of unreadable examples
NAME/VERSION/.prepare/train/plan.json                  the options, and what was inferred
NAME/VERSION/.prepare/train/00000.json                 a finished shard: counts, bytes, unreadable examples
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.core.atomic import write_atomically
from mmjax.core.config import ConfigError
from mmjax.core.locks import Lock
from mmjax.data.preparing.schema import Schema, tfds_features
from mmjax.data.storage import filesystem

logger = logging.getLogger(__name__)

PLAN = "plan.json"
UNREADABLE = "unreadable.jsonl"
_OWN = ".prepare"
_SUFFIX = "array_record"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a split will hold. A split that was begun is only continued with the same options ``asked``."""

    asked: Mapping[str, Any]
    schema: Schema
    examples: int  # in the source
    shards: int
    formats: Mapping[str, str | None]  # of the pictures in each modality, if they all have one
    class_names: tuple[str, ...] | None
    unreadable: Sequence[tuple[str, str, str]]  # key, reason and detail of what the source left out when opened

    def range(self, shard: int) -> range:
        """The examples of one shard; sizes of shards differ by one at most."""
        return range(shard * self.examples // self.shards, (shard + 1) * self.examples // self.shards)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.loads(json.dumps(plain | {"schema": self.schema.to_json()}, default=str))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """The plan that ``to_json`` wrote."""
        names = value["class_names"]
        parsed = {"schema": Schema.from_json(value["schema"]), "class_names": None if names is None else tuple(names)}
        return cls(**{**value, **parsed})


def id_limit(folder: str) -> int | None:
    """A bound that all ids of a prepared data set are below (they have gaps); None if it is not known."""
    own = f"{folder.rstrip('/')}/{_OWN}"
    names = filesystem.list_names(own) if filesystem.is_folder(own) else []
    plans = [f"{own}/{name}/{PLAN}" for name in names if filesystem.exists(f"{own}/{name}/{PLAN}")]
    limits = [json.loads(filesystem.read(path))["asked"].get("ids") for path in plans]
    return None if None in limits else max(limits, default=None)


class SplitFolder:
    """One split in ``output/name/version``."""

    def __init__(self, output: str | os.PathLike[str], *, name: str, version: str, split: str):
        if "://" in os.fspath(output):
            raise ConfigError(f"--output={output}: must be a local folder; copy it to its place afterwards")
        if not re.fullmatch(r"[a-zA-Z]\w*", name):
            raise ConfigError(f"--name={name}: must be letters, digits and underscores, a letter first")
        if not re.fullmatch(r"\d+\.\d+\.\d+", version):
            raise ConfigError(f"--version={version}: must be three numbers, as 1.0.0")
        if not re.fullmatch(r"\w+", split):
            raise ConfigError(f"--split={split}: must be letters, digits and underscores")
        self.path = Path(output).expanduser() / name / version
        self.name, self.version, self.split = name, version, split
        self._own = self.path / _OWN / split

    def shard(self, number: int, shards: int) -> Path:
        """The path of a finished shard."""
        return self.path / f"{self.name}-{self.split}.{_SUFFIX}-{number:05d}-of-{shards:05d}"

    def temporary(self, number: int) -> Path:
        """The path to which this process writes an unfinished shard."""
        return self._own / f"{number:05d}.{os.getpid()}.tmp"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the split against other processes, and removes temporary files of a killed one."""
        if not self._own.is_dir():
            foreign = [] if not self.path.is_dir() else [p.name for p in self.path.iterdir() if self._foreign(p)]
            if foreign:
                raise ConfigError(
                    f"--output: {self.path} has {foreign[0]}, which this command did not write; "
                    "use another --name, --version or --output"
                )
        with self.write_errors():
            try:
                self._own.mkdir(parents=True, exist_ok=True)
                lock = Lock(self._own / "lock")
            except (FileExistsError, NotADirectoryError):
                raise ConfigError(f"--output: {self.path} cannot be made, a file has its name; use another") from None
            except BlockingIOError:
                raise ConfigError(f"--output: another process is writing {self.path}; wait for it") from None
        with lock:
            if lock.died:
                logger.warning(
                    f"the last start (process {lock.died}) ended without a word: it was killed, or its machine failed; "
                    "if nobody did that, memory is the likely cause: use fewer --workers"
                )
            for path in self._own.glob("*.tmp"):
                path.unlink(missing_ok=True)
            yield

    @contextlib.contextmanager
    def write_errors(self) -> Iterator[None]:
        """Turns the error of a full disk into one line; the shards that are finished stay."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # the latter of array_record
            cause = (error.strerror if isinstance(error, OSError) else None) or str(error).partition(";")[0]
            raise ConfigError(
                f"--output: {self.path} cannot be written ({cause}); make room there, then the same command "
                "continues from the finished shards"
            ) from error

    def plan(self) -> Plan | None:
        """The plan of this split, or None if it was not begun."""
        return self._plan(self._own)

    def other_plans(self) -> list[tuple[str, Plan]]:
        """Names and plans of the data set's other splits."""
        plans = ((path.name, self._plan(path)) for path in sorted(self._own.parent.iterdir()) if path != self._own)
        return [(name, plan) for name, plan in plans if plan is not None]

    def begin(self, plan: Plan) -> None:
        """Stores ``plan`` as this split's."""
        _write(self._own / PLAN, plan.to_json())

    def record(self, number: int) -> dict[str, Any] | None:
        """The record of a finished shard; None while it is unfinished."""
        return self._record(self._own / f"{number:05d}.json")

    def finish_shard(self, number: int, shards: int, record: Mapping[str, Any]) -> None:
        """Renames this process's complete temporary file to the shard, then stores the shard's ``record``."""
        temporary = self.temporary(number)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, self.shard(number, shards))
        _write(self._own / f"{number:05d}.json", record)

    def publish(self) -> None:
        """Writes TFDS's metadata and ``unreadable.jsonl`` for all complete splits."""
        complete = []
        for name, plan in [(self.split, self.plan()), *self.other_plans()]:
            if plan is not None:
                records = [self._record(self._own.parent / name / f"{k:05d}.json") for k in range(plan.shards)]
                if all(record is not None for record in records):
                    complete.append((name, plan, [record for record in records if record is not None]))
        complete.sort(key=lambda split: split[0])
        _write_unreadable(self.path / UNREADABLE, complete)
        stored = [split for split in complete if any(record["examples"] for record in split[2])]
        if stored:
            self._write_metadata(stored)

    def _write_metadata(self, splits: Sequence[tuple[str, Plan, list[dict[str, Any]]]]) -> None:
        import tensorflow_datasets as tfds

        infos = [
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=[record["examples"] for record in records],
                num_bytes=sum(record["record_bytes"] for record in records),
                filename_template=tfds.core.ShardedFileTemplate(
                    data_dir=self.path, dataset_name=self.name, split=name, filetype_suffix=_SUFFIX
                ),
            )
            for name, _, records in splits
        ]
        plans = [plan for _, plan, _ in splits]
        # All splits have the same schema.
        schema = plans[0].schema
        formats: dict[str, str | None] = {}
        for modality in schema.modalities:
            kinds = {plan.formats.get(modality) for plan in plans}
            formats[modality] = kinds.pop() if len(kinds) == 1 else None
        names = next((plan.class_names for plan in plans if plan.class_names is not None), None)
        tfds.folder_dataset.write_metadata(
            data_dir=self.path,
            features=tfds_features(schema, class_names=names, formats=formats),
            split_infos=infos,
            version=self.version,
            check_data=False,
            description=f"{self.name}, prepared by mmjax",
        )

    def _foreign(self, path: Path) -> bool:
        return not ((self.path / _OWN).is_dir() or path.name.startswith("."))

    @staticmethod
    def _plan(folder: Path) -> Plan | None:
        try:
            return Plan.from_json(json.loads((folder / PLAN).read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"--output: {folder / PLAN} cannot be read ({error}); remove {folder}") from None

    @staticmethod
    def _record(path: Path) -> dict[str, Any] | None:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None


def _write(path: Path, value: Any) -> None:
    # JSON can read back how the error handler writes names that are not UTF-8.
    write_atomically(path, json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace"), sync=True)


def _write_unreadable(path: Path, splits: Sequence[tuple[str, Plan, list[dict[str, Any]]]]) -> None:
    lines = [
        json.dumps({"split": name, "key": key, "reason": reason, "detail": detail}, ensure_ascii=False)
        for name, plan, records in splits
        for key, reason, detail in [*plan.unreadable, *(entry for record in records for entry in record["unreadable"])]
    ]
    if lines:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    else:
        path.unlink(missing_ok=True)
