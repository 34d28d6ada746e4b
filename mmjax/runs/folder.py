"""The run folder: who owns it, what it was made from, and what else is written into it."""

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

from mmjax.checkpoints import location, orbax_errors
from mmjax.core.config import ConfigError
from mmjax.experiment import Experiment
from mmjax.parallel import collectives
from mmjax.runs.jsonl import LineFile

logger = logging.getLogger(__name__)

STARTS = "starts.jsonl"
TOKENIZER_FOLDER = "tokenizer"

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
    elsewhere = experiment.checkpoint.directory is not None
    if not collectives.is_main_process():
        collectives.barrier("claim")
        if elsewhere:  # so nothing here has to be seen by all machines; whichever comes first next time finds its own
            with _writing(workdir):
                workdir.mkdir(parents=True, exist_ok=True)
                _write(workdir / "config.json", experiment.to_dict())
        else:
            _await(workdir / "config.json")
        yield []
        return
    # Read as an experiment, so that a key which is newer than the folder has its default there.
    known = (workdir / "config.json").exists() or _started_with(workdir) is not None
    found = Experiment.from_dict(read_config(workdir)).to_dict() if known else None
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
    elif workdir.exists() and not (workdir.is_dir() and not any(workdir.iterdir())):
        raise ConfigError(f"--workdir={workdir}: is not empty and is no run folder; use a new one")
    if elsewhere or found is not None:
        kept = _check_checkpoints(workdir, config, before=found)
        if kept is not None and found is None:
            switched = _switched(kept, config)
    with contextlib.ExitStack() as stack:
        with _writing(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(workdir / ".lock", "w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"--workdir={workdir}: another process is training there; wait for it or stop it"
                ) from None
            _write(workdir / "config.json", config)
            location.write_config(experiment.checkpoint.directory, config)
            _append_start(workdir, config, overrides, switched)
        collectives.barrier("claim")
        yield switched


def keep_tokenizer(tokenizer: Any, workdir: Path) -> None:
    """Puts the tokenizer into the run folder, where the next start and evaluation find it; once, and whole."""
    folder = workdir / TOKENIZER_FOLDER
    if not folder.exists():
        part = folder.with_name(f".{folder.name}.{jax.process_index()}.part")
        with _writing(workdir):
            shutil.rmtree(part, ignore_errors=True)
            tokenizer.save(part)
            try:
                os.replace(part, folder)
            except OSError:
                if not folder.exists():
                    raise
                shutil.rmtree(part)  # another process of this machine was faster


def read_config(workdir: str | Path) -> dict[str, Any]:
    """The resolved configuration that a run folder was made from; the last start keeps it too, should it be damaged."""
    path = Path(workdir) / "config.json"
    started = _started_with(workdir)
    try:
        config = json.loads(path.read_text())
        if isinstance(config, dict):
            return config
        trouble = "is damaged (it holds no section)"
    except FileNotFoundError:
        if started is None:
            raise ConfigError(
                f"--workdir={workdir}: no run folder (it has no config.json); train there first"
            ) from None
        trouble = "is missing"
    except (ValueError, RecursionError, OSError) as error:  # not JSON, not even text, or not to be read
        trouble = f"is damaged ({error})"
    if started is None:
        raise ConfigError(f"--workdir={workdir}: config.json {trouble}; restore it or start afresh")
    logger.warning(f"config.json in {workdir} {trouble}; the last start in {STARTS} says what it was")
    return started


def checkpoint_directory(workdir: str | Path) -> str | None:
    """Where the run's checkpoints lie, if not in its folder; also of a folder that has nothing but checkpoints."""
    if not (Path(workdir) / "config.json").exists():
        return None
    return read_config(workdir).get("checkpoint", {}).get("directory")


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


def _check_checkpoints(
    workdir: Path, config: dict[str, Any], *, before: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Raises where the checkpoints are another experiment's, or were left behind in another place.

    Gives the configuration that lies beside them, if one does.
    """
    now = config["checkpoint"]["directory"]
    kept = location.read_config(now)
    if kept is not None:
        kept = Experiment.from_dict(kept).to_dict()
        changes = differences(kept | {SWITCHED: config[SWITCHED]}, config)
        if changes:
            raise ConfigError(
                f"checkpoint.directory={now}: holds checkpoints of another experiment ({'; '.join(changes)}); use "
                "another place, or give the settings that it was started with"
            )
    then = now if before is None else before["checkpoint"]["directory"]
    if then != now and not location.steps(workdir, now) and location.steps(workdir, then):
        raise ConfigError(
            f"{location.named(workdir, now)}: holds no checkpoints, and this run's lie in "
            f"{location.locate(workdir, then)}; copy them first, or leave checkpoint.directory as it was"
        )
    return kept


def _await(path: Path) -> None:
    deadline = time.monotonic() + _SEEN_WITHIN
    while not path.exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"--workdir={path.parent}: process {jax.process_index()} on {platform.node()} does not see what the "
                "first process has written there; use a folder that all machines share, or set checkpoint.directory"
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


def _started_with(workdir: str | Path) -> dict[str, Any] | None:
    """The configuration of the last start that can be read."""
    try:
        lines = (Path(workdir) / STARTS).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
            config = json.loads(line)["config"]
            if isinstance(config, dict):
                return config
    return None


@contextlib.contextmanager
def _writing(workdir: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower than this
        raise ConfigError(
            f"--workdir={workdir}: cannot be written to ({orbax_errors.reason(error)}); make room there or use another "
            "folder"
        ) from error


def _append_start(workdir: Path, config: dict[str, Any], overrides: Sequence[str], switched: Sequence[str]) -> None:
    facts = start_facts() | {"overrides": list(overrides), "switched": list(switched), "config": config}
    starts = LineFile(workdir / STARTS)
    if not starts.write(json.dumps(facts)):
        raise OSError(None, starts.trouble)


def _write(path: Path, value: Any) -> None:
    """Atomically, so that a kill leaves the old file or the new one."""
    part = path.with_name(f"{path.name}.{jax.process_index()}.part")
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
