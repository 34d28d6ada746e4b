"""The run folder: who owns it, what it was made from, and what else is written into it."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from mmjax.config import ConfigError
from mmjax.parallel import distributed
from mmjax.train.experiment import Experiment

MAY_DIFFER = (
    "log",
    "checkpoint.keep",
    "guard",
    "data.workers",
    "data.threads",
    "data.prefetch",
    "data.autotune",
    "data.max_skipped",
)
"""Keys that do not decide a run's results: a run may go on with others."""

_SEEN_WITHIN = 60.0  # seconds: network file systems remember for a while that a file was not there

SWITCHED = "augment"
"""The key that decides results and that a run may go on with another of: it is said, and kept with the start."""

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
    """Makes ``workdir`` this experiment's, or checks that it already is; no second run may use it meanwhile.

    Gives what has changed in its augmentations since it was last started. Of several processes the first one does
    this for all, and the others wait for it.
    """
    if not distributed.is_first():
        distributed.meet("claim")
        _await(workdir / "config.json")
        yield []
        return
    # Read as an experiment, so that a key which is newer than the folder has its default there.
    found = Experiment.of(read_config(workdir)).to_dict() if (workdir / "config.json").exists() else None
    config = experiment.to_dict()
    switched: list[str] = []
    if found is not None:
        switched = _switched(found, config)
        changes = differences(found | {SWITCHED: config[SWITCHED]}, config)
        if changes:
            raise ConfigError(
                f"--workdir={workdir}: belongs to another experiment ({'; '.join(changes)}); use another folder, or "
                "give the settings that it was started with"
            )
    elif workdir.exists() and any(workdir.iterdir()):
        raise ConfigError(f"--workdir={workdir}: is not empty and is no run folder; use a new one")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--workdir={workdir}: cannot be made ({error.strerror}); use another folder") from None
    with open(workdir / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"--workdir={workdir}: another process is training there; wait for it or stop it"
            ) from None
        _write(workdir / "config.json", config)
        _append_start(workdir, overrides, switched)
        distributed.meet("claim")
        yield switched


def read_config(workdir: str | Path) -> dict[str, Any]:
    """The resolved configuration that a run folder was made from."""
    path = Path(workdir) / "config.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"--workdir={workdir}: no run folder (it has no config.json); train there first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--workdir={workdir}: config.json is damaged ({error}); restore it or start afresh"
        ) from None


def differences(old: dict[str, Any], new: dict[str, Any], *, prefix: str = "") -> list[str]:
    """``key: old -> new`` for each key that differs and matters."""
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


def start_facts() -> dict[str, Any]:
    """What a run cannot be repeated without: versions, source revision, devices."""
    return {
        "command": sys.argv,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "git": _git_revision(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "host": platform.node(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _await(path: Path) -> None:
    deadline = time.monotonic() + _SEEN_WITHIN
    while not path.exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"--workdir={path.parent}: process {jax.process_index()} on {platform.node()} does not see what the "
                "first process has written there; use a folder that all machines share"
            )
        time.sleep(0.5)


def _switched(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What is different about the augmentations, in words."""
    before, now = ({name: dict(options) for name, options in config.get(SWITCHED, ())} for config in (old, new))
    words = [f"{name} is on" for name in now if name not in before]
    words += [f"{name} is off" for name in before if name not in now]
    both = [name for name in now if name in before]
    words += differences({n: before[n] for n in both}, {n: now[n] for n in both}, prefix="augment.")
    if not words and [*before] != [*now]:
        words.append("their order is another")
    return words


def _append_start(workdir: Path, overrides: Sequence[str], switched: Sequence[str]) -> None:
    with open(workdir / "starts.jsonl", "a") as file:
        file.write(json.dumps(start_facts() | {"overrides": list(overrides), "switched": list(switched)}) + "\n")


def _write(path: Path, value: Any) -> None:
    """Atomically, so that a kill leaves the old file or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(part, path)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The revision of the source tree that mmjax is imported from, with ``+changes`` where it has any."""
    tree = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(tree), *words], capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None
