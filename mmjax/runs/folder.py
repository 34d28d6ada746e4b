"""The run folder: its lock, its configuration and the record of each start."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from mmjax.checkpoints import location
from mmjax.checkpoints.orbax_errors import CheckpointNotSaved, explain
from mmjax.core.atomic import write_atomically
from mmjax.core.config import ConfigError, coerce
from mmjax.core.files import read_json_object
from mmjax.core.locks import Lock, find_owner
from mmjax.experiment import Experiment
from mmjax.parallel import collectives
from mmjax.runs.jsonl import JsonlWriter, read_jsonl
from mmjax.runs.start_record import describe_start

logger = logging.getLogger(__name__)

STARTS = "starts.jsonl"
TOKENIZER_FOLDER = "tokenizer"
LOCK = ".lock"
CONFIG = "config.json"

MAY_DIFFER = (
    "log",
    "checkpoint.keep",
    "checkpoint.directory",
    "guard",
    "data.workers",
    "data.threads",
    "data.prefetch",
    "data.autotune",
    "data.max_unreadable",
)
"""Keys that do not affect results; a run may resume with other values."""

_VISIBLE_SECONDS = 60.0  # a network file system may show a new file this late

CHANGEABLE = "augment"
"""The key that affects results but may change when a run resumes; changes are logged and kept with the start."""


class Claim:
    """A run folder that belongs to this run alone.

    Attributes:
      augmentation_changes: what has changed since the last start.
    """

    def __init__(self, workdir: Path, *, augmentation_changes: Sequence[str] = (), lock: Lock | None = None):
        self.augmentation_changes = augmentation_changes
        self._workdir = workdir
        self._lock = lock
        self._write: Callable[[], None] | None = None

    def write(self, write: Callable[[], None]) -> None:
        """Writes the folder's own files by ``write``, which is called again if the folder is deleted."""
        self._write = write
        with _write_errors(self._workdir):
            write()

    def is_deleted(self) -> bool:
        """Whether the folder was deleted; raises CheckpointNotSaved if another run is there now."""
        if self._lock is None:
            return self._write is not None and not (self._workdir / CONFIG).exists()
        try:
            return self._lock.is_deleted()
        except BlockingIOError as error:
            raise CheckpointNotSaved(
                f"--workdir={self._workdir}: was deleted, and process {error} is training there now; "
                "use another folder for one of the two"
            ) from None

    def restore(self, *, required: bool = False) -> None:
        """Writes the folder's own files again if it was deleted; an error counts only if they are ``required``."""
        if self._write is None or not self.is_deleted():
            return
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            if self._lock is not None:
                self._lock.release()
                self._lock = Lock(self._workdir / LOCK)
            self._write()
        except (OSError, ConfigError) as error:
            if required:
                raise CheckpointNotSaved(
                    f"--workdir={self._workdir}: was deleted and cannot be written again ({explain(error)})"
                ) from error
        else:
            logger.warning(
                f"{self._workdir} was deleted; the run goes on and writes it again, without the metrics and "
                "checkpoints that were there"
            )

    def release(self) -> None:
        """Ends the claim in good order."""
        if self._lock is not None:
            self._lock.release()


@contextlib.contextmanager
def claim(workdir: Path, experiment: Experiment, *, overrides: Sequence[str], tokenizer: Any = None) -> Iterator[Claim]:
    """Locks ``workdir`` for this experiment, after creating it or checking that it belongs to the same experiment.

    Process 0 does this for all processes; the others wait.

    Args:
      workdir: the run folder.
      experiment: the resolved experiment.
      overrides: command-line overrides, for the record of the start.
      tokenizer: saved into the folder if it has none yet.
    """
    has_directory = experiment.checkpoint.directory is not None
    config = experiment.to_dict()

    def write_files() -> None:
        _write_json(workdir / CONFIG, config)
        if tokenizer is not None:
            save_tokenizer(tokenizer, workdir)

    if not collectives.is_main_process():
        collectives.barrier("claim")
        own = Claim(workdir)
        if has_directory:  # each machine has a run folder of its own, complete for the next start
            with _write_errors(workdir):
                workdir.mkdir(parents=True, exist_ok=True)
            own.write(write_files)
        else:
            _wait_for(workdir / CONFIG)
        yield own
        return
    augmentation_changes = _check_folder(workdir, experiment)
    with contextlib.ExitStack() as stack:
        with _write_errors(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            try:
                lock = Lock(workdir / LOCK)
            except BlockingIOError:
                raise ConfigError(
                    f"--workdir={workdir}: process {find_owner(workdir / LOCK)} is training there; wait for it or "
                    "stop it"
                ) from None
        own = Claim(workdir, augmentation_changes=augmentation_changes, lock=lock)
        stack.callback(own.release)
        if lock.died:
            logger.warning(
                f"the last start (process {lock.died}) ended without a word: it was killed, or its machine failed; if "
                "nobody did that, memory is the likely cause: lower data.workers, data.threads or data.prefetch, or "
                "begin another run with a smaller batch_size or more micro_batches"
            )
        start = describe_start() | {
            "overrides": list(overrides),
            "augment_changes": list(augmentation_changes),
            "config": config,
        }

        def write_all() -> None:
            write_files()
            location.write_config(experiment.checkpoint.directory, config)
            starts = JsonlWriter(workdir / STARTS)
            if not starts.write(start):
                raise OSError(None, starts.failure)

        own.write(write_all)
        collectives.barrier("claim")
        yield own


def save_tokenizer(tokenizer: Any, workdir: Path) -> None:
    """Saves the tokenizer into the run folder, atomically and only once; later starts and evaluation load it."""
    folder = workdir / TOKENIZER_FOLDER
    if not folder.exists():
        temporary = folder.with_name(f".{folder.name}.{jax.process_index()}.tmp")
        with _write_errors(workdir):
            shutil.rmtree(temporary, ignore_errors=True)
            tokenizer.save(temporary)
            try:
                os.replace(temporary, folder)
            except OSError:
                if not folder.exists():
                    raise
                shutil.rmtree(temporary)  # another process of this machine was faster


def read_config(workdir: str | Path) -> dict[str, Any]:
    """Returns the resolved configuration of a run folder; if ``config.json`` is damaged, that of the last start."""
    path = Path(workdir) / CONFIG
    last_start = _last_config(workdir)
    try:
        return read_json_object(path)
    except FileNotFoundError:
        if last_start is None:
            raise ConfigError(
                f"--workdir={workdir}: no run folder (it has no config.json); train there first"
            ) from None
        problem = "is missing"
    except (ValueError, OSError) as error:
        problem = f"is damaged ({error})"
    if last_start is None:
        raise ConfigError(f"--workdir={workdir}: config.json {problem}; restore it or start from scratch")
    logger.warning(f"config.json in {workdir} {problem}; using the configuration of the last start in {STARTS}")
    return last_start


def checkpoint_directory(workdir: str | Path) -> str | None:
    """Returns ``checkpoint.directory`` of a run folder; None if it is not set, or there is no config.json."""
    if not (Path(workdir) / CONFIG).exists():
        return None
    section = coerce(read_config(workdir).get("checkpoint", {}), dict, path="checkpoint")
    return coerce(section.get("directory"), str | None, path="checkpoint.directory")


def differences(old: dict[str, Any], new: dict[str, Any], *, prefix: str = "") -> list[str]:
    """Describes each key that differs and affects results."""
    changes = []
    for key in sorted(old.keys() | new.keys()):
        path = f"{prefix}{key}"
        if path in MAY_DIFFER:
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changes += differences(a, b, prefix=f"{path}.")
        elif a != b:
            changes.append(f"{path}: {a!r} there, {b!r} now")
    return changes


def _check_folder(workdir: Path, experiment: Experiment) -> list[str]:
    """Raises if the folder belongs to another experiment; returns the changes of the augmentations since its start."""
    irregular = [path.name for path in workdir.glob("*") if path.exists() and not (path.is_file() or path.is_dir())]
    if irregular:
        raise ConfigError(f"--workdir={workdir}: {irregular[0]} is not a regular file; remove it")
    # Parsed as an experiment, so that keys added since then have their defaults.
    exists = (workdir / CONFIG).exists() or _last_config(workdir) is not None
    stored = Experiment.from_dict(read_config(workdir)).to_dict() if exists else None
    config = experiment.to_dict()
    augment_changes: list[str] = []
    if stored is not None:
        augment_changes = _augment_changes(stored, config)
        changes = differences(stored | {CHANGEABLE: config[CHANGEABLE]}, config)
        if changes:
            raise ConfigError(
                f"--workdir={workdir}: belongs to another experiment ({'; '.join(changes)}); use another folder, or "
                "the settings that it was started with"
            )
    elif workdir.exists() and not (workdir.is_dir() and not any(workdir.iterdir())):
        raise ConfigError(f"--workdir={workdir}: is not empty and is not a run folder; use a new one")
    if experiment.checkpoint.directory is not None or stored is not None:
        other = _check_checkpoints(workdir, config, before=stored)
        if other is not None and stored is None:
            augment_changes = _augment_changes(other, config)
    return augment_changes


def _check_checkpoints(
    workdir: Path, config: dict[str, Any], *, before: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Raises if the checkpoints belong to another experiment, or are still in the previous directory.

    Returns the configuration stored beside the checkpoints, if any.
    """
    now = config["checkpoint"]["directory"]
    stored = location.read_config(now)
    if stored is not None:
        stored = Experiment.from_dict(stored).to_dict()
        changes = differences(stored | {CHANGEABLE: config[CHANGEABLE]}, config)
        if changes:
            raise ConfigError(
                f"checkpoint.directory={now}: holds checkpoints of another experiment ({'; '.join(changes)}); use "
                "another directory, or the settings that it was started with"
            )
    previous = now if before is None else before["checkpoint"]["directory"]
    if previous != now and not location.list_steps(workdir, now) and location.list_steps(workdir, previous):
        raise ConfigError(
            f"{location.describe(workdir, now)}: has no checkpoints; those of this run are in "
            f"{location.resolve_directory(workdir, previous)}; copy them, or keep checkpoint.directory as it was"
        )
    return stored


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"--workdir={path.parent}: process {jax.process_index()} on {platform.node()} does not see the files "
                "of the first process; use a folder that all machines share, or set checkpoint.directory"
            )
        time.sleep(0.5)


def _augment_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Describes the changes of the augmentations."""
    before, now = ({name: dict(options) for name, options in config.get(CHANGEABLE, ())} for config in (old, new))
    changes = [f"{name} is on" for name in now if name not in before]
    changes += [f"{name} is off" for name in before if name not in now]
    both = [name for name in now if name in before]
    changes += differences({n: before[n] for n in both}, {n: now[n] for n in both}, prefix="augment.")
    if not changes and [*before] != [*now]:
        changes.append("their order has changed")
    return changes


def _last_config(workdir: str | Path) -> dict[str, Any] | None:
    """Returns the configuration of the last readable start; None if there is none."""
    configs = [start.get("config") for _, start in read_jsonl(Path(workdir) / STARTS)]
    return next((config for config in reversed(configs) if isinstance(config, dict)), None)


@contextlib.contextmanager
def _write_errors(workdir: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ConfigError(
            f"--workdir={workdir}: cannot be written to ({explain(error)}); make room there or use another folder"
        ) from error


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2) + "\n")
