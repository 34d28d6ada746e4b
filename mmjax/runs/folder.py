"""The run folder: its lock, its configuration and the record of each start."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from mmjax.checkpoints import location
from mmjax.checkpoints.orbax_errors import explain
from mmjax.core.atomic import write_atomically
from mmjax.core.config import ConfigError, coerce
from mmjax.core.files import read_json_object
from mmjax.experiment import Experiment
from mmjax.parallel import collectives
from mmjax.runs.jsonl import JsonlWriter, read_jsonl

logger = logging.getLogger(__name__)

STARTS = "starts.jsonl"
TOKENIZER_FOLDER = "tokenizer"
LOCK = ".lock"

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

PACKAGES = (
    "mmjax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "transformers",
    "tokenizers",
)


@contextlib.contextmanager
def claim(workdir: Path, experiment: Experiment, *, overrides: Sequence[str]) -> Iterator[list[str]]:
    """Locks ``workdir`` for this experiment, after creating it or checking that it belongs to the same experiment.

    Process 0 does this for all processes; the others wait.

    Args:
      workdir: the run folder.
      experiment: the resolved experiment.
      overrides: command-line overrides, for the record of the start.

    Yields:
      The changes of the augmentations since the last start.
    """
    has_directory = experiment.checkpoint.directory is not None
    if not collectives.is_main_process():
        collectives.barrier("claim")
        if has_directory:  # each machine has a run folder of its own, complete for the next start
            with _write_errors(workdir):
                workdir.mkdir(parents=True, exist_ok=True)
                _write_json(workdir / "config.json", experiment.to_dict())
        else:
            _wait_for(workdir / "config.json")
        yield []
        return
    irregular = [path.name for path in workdir.glob("*") if path.exists() and not (path.is_file() or path.is_dir())]
    if irregular:
        raise ConfigError(f"--workdir={workdir}: {irregular[0]} is not a regular file; remove it")
    # Parsed as an experiment, so that keys added since then have their defaults.
    exists = (workdir / "config.json").exists() or _last_config(workdir) is not None
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
    if has_directory or stored is not None:
        other = _check_checkpoints(workdir, config, before=stored)
        if other is not None and stored is None:
            augment_changes = _augment_changes(other, config)
    with contextlib.ExitStack() as stack:
        with _write_errors(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(workdir / LOCK, "a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"--workdir={workdir}: process {find_owner(workdir)} is training there; wait for it or stop it"
                ) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()} on {platform.node()}")
            lock.flush()
            _write_json(workdir / "config.json", config)
            location.write_config(experiment.checkpoint.directory, config)
            _append_start(workdir, config, overrides, augment_changes)
        collectives.barrier("claim")
        yield augment_changes


def find_owner(workdir: Path) -> str:
    """The process that trains in ``workdir`` now, as text; empty if none does."""
    try:
        with open(workdir / LOCK) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read() or "?"
    except OSError:  # there is no such file
        pass
    return ""


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
    path = Path(workdir) / "config.json"
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
    if not (Path(workdir) / "config.json").exists():
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


def describe_start() -> dict[str, Any]:
    """Returns what is needed to repeat a run: command, versions, source revision, devices."""
    return {
        "command": sys.argv,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "git": _git_revision(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "host": platform.node(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


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


def _append_start(
    workdir: Path, config: dict[str, Any], overrides: Sequence[str], augment_changes: Sequence[str]
) -> None:
    details = {"overrides": list(overrides), "augment_changes": list(augment_changes), "config": config}
    starts = JsonlWriter(workdir / STARTS)
    if not starts.write(describe_start() | details):
        raise OSError(None, starts.failure)


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Returns the Git revision of the source tree that mmjax is imported from, with ``+changes`` if it is modified."""
    tree = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(tree), *args], capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None
