"""Where a run's checkpoints lie: in its folder, in another one, or in a bucket."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from etils import epath

from mmjax.core.config import ConfigError

_BUCKET = "gs://"  # the only kind that Orbax writes arrays to

_CONFIG = "config.json"


def locate(workdir: str | Path, directory: str | None) -> epath.Path:
    """The place, seen to be within reach; ``directory`` as in ``CheckpointConfig``."""
    if directory is None:
        return epath.Path(Path(workdir).absolute() / "checkpoints")
    if "://" not in directory:
        return epath.Path(Path(directory).expanduser().absolute())
    if not directory.startswith(_BUCKET):
        raise ConfigError(
            f"checkpoint.directory={directory}: no such kind of place; use gs://BUCKET/… or a path, under which other "
            "storage can be mounted"
        )
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the stack of what it raises besides
    place = epath.Path(directory)
    try:
        place.exists()
    except ImportError:
        raise ConfigError(f"checkpoint.directory={directory}: needs gcsfs; pip install 'mmjax[gcs]'") from None
    except Exception as error:  # each file system has errors of its own
        raise _no_access(directory, "reached", error) from None
    return place


def named(workdir: str | Path, directory: str | None) -> str:
    """How an error message names the place: by what the user gave for it."""
    return f"--workdir={workdir}" if directory is None else f"checkpoint.directory={directory}"


def steps(workdir: str | Path, directory: str | None) -> list[int]:
    """The steps of the checkpoints there, finished or not."""
    place = locate(workdir, directory)
    return sorted(int(entry.name) for entry in place.iterdir() if entry.name.isdigit()) if place.is_dir() else []


def read_config(directory: str | None) -> dict[str, Any] | None:
    """The configuration that lies beside checkpoints outside of the run folder; None where there is none."""
    if directory is None or not (path := locate("", directory) / _CONFIG).exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(
            f"checkpoint.directory={directory}: {_CONFIG} is damaged ({error}); copy that of the run folder there"
        ) from None


def write_config(directory: str | None, config: dict[str, Any]) -> None:
    """Says whose checkpoints these are, so that no other experiment goes on from them; needless in the run folder."""
    if directory is None:
        return
    place = locate("", directory)
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_whole(place / _CONFIG, json.dumps(config, indent=2) + "\n")
    except Exception as error:  # each file system has errors of its own
        raise _no_access(directory, "written", error) from None


def write_whole(path: epath.Path, text: str) -> None:
    """Writes a small file so that a kill leaves the old one or the new one."""
    if str(path).startswith(_BUCKET):  # where an object is there as a whole or not at all
        path.write_text(text)
        return
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def _no_access(directory: str, what: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"checkpoint.directory={directory}: cannot be {what} ({type(error).__name__}: {error}); check its name and "
        "what this machine may do there (credentials, permissions)"
    )
