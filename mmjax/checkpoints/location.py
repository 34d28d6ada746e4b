"""The directory of a run's checkpoints: in the run folder, elsewhere, or in a bucket."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any

from etils import epath

from mmjax.core.atomic import write_atomically
from mmjax.core.config import ConfigError
from mmjax.core.files import read_json_object

_BUCKET = "gs://"  # the only remote storage that Orbax writes arrays to
_CONFIG = "config.json"
_PROBE_BYTES = 1 << 16  # what a directory must be able to take before a save begins
_DELETION_SECONDS = 2.0  # how long a directory that is being deleted may still exist


def resolve_directory(workdir: str | Path, directory: str | None) -> epath.Path:
    """Returns the directory of the checkpoints after checking that it can be reached.

    Args:
      workdir: the run folder.
      directory: ``CheckpointConfig.directory``.
    """
    if directory is None:
        return epath.Path(Path(workdir).absolute() / "checkpoints")
    if "://" not in directory:
        path = Path(directory).expanduser().absolute()
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        if not existing.is_dir():
            raise ConfigError(f"checkpoint.directory={directory}: {existing} is not a folder; name another one")
        return epath.Path(path)
    if not directory.startswith(_BUCKET):
        raise ConfigError(
            f"checkpoint.directory={directory}: unsupported storage; use gs://BUCKET/… or a path, where other storage "
            "can be mounted"
        )
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback for errors that it also raises
    path = epath.Path(directory)
    try:
        path.exists()
    except ImportError:
        raise ConfigError(f"checkpoint.directory={directory}: needs gcsfs; pip install 'mmjax[gcs]'") from None
    except Exception as error:  # each file system has its own errors
        raise _no_access(directory, "reached", error) from None
    return path


def describe(workdir: str | Path, directory: str | None) -> str:
    """Returns the setting that decides the directory, for error messages."""
    return f"--workdir={workdir}" if directory is None else f"checkpoint.directory={directory}"


def list_steps(workdir: str | Path, directory: str | None) -> list[int]:
    """Returns the steps of all checkpoints, finished or not."""
    path = resolve_directory(workdir, directory)
    return sorted(int(entry.name) for entry in path.iterdir() if entry.name.isdigit()) if path.is_dir() else []


def read_config(directory: str | None) -> dict[str, Any] | None:
    """Returns the configuration beside checkpoints outside the run folder; None if there is none."""
    if directory is None or not (path := resolve_directory("", directory) / _CONFIG).exists():
        return None
    try:
        return read_json_object(path)
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"checkpoint.directory={directory}: {_CONFIG} is damaged ({error}); copy that of the run folder there"
        ) from None


def write_config(directory: str | None, config: dict[str, Any]) -> None:
    """Writes the configuration beside checkpoints outside the run folder, so that no other experiment resumes them."""
    if directory is None:
        return
    path = resolve_directory("", directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / _CONFIG, json.dumps(config, indent=2) + "\n")
    except Exception as error:  # each file system has its own errors
        raise _no_access(directory, "written", error) from None


def check_writable(directory: epath.Path) -> None:
    """Raises OSError if nothing can be written into ``directory``.

    If Orbax cannot create the directory of a checkpoint, its threads wait for it for minutes.
    """
    probe = directory / ".writable"
    try:
        probe.mkdir(exist_ok=True)
        (probe / "probe").write_bytes(bytes(_PROBE_BYTES))
    finally:
        with contextlib.suppress(OSError):
            (probe / "probe").unlink()
        with contextlib.suppress(OSError):
            probe.rmdir()


def is_deleted(directory: epath.Path) -> bool:
    """Whether ``directory`` is gone; waits a moment, because deleting it takes a while."""
    deadline = time.monotonic() + _DELETION_SECONDS
    while directory.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def unused_path(path: epath.Path) -> epath.Path:
    """Returns ``path``, or ``path`` with the first number appended that does not exist."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}.{number}")
    return candidate


def _no_access(directory: str, action: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"checkpoint.directory={directory}: cannot be {action} ({type(error).__name__}: {error}); check its name and "
        "this machine's credentials and permissions"
    )
