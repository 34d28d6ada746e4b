"""Reading files that a stranger may have written: nothing here waits for a pipe or follows JSON of any depth."""

from __future__ import annotations

import collections
import json
import os
from pathlib import Path
from typing import Any

from mmjax.core.config import ConfigError

MAX_JSON_BYTES = 64 << 20
MAX_JSON_DEPTH = 64  # the code that a value is handed to may be recursive


def read_json(path: Any) -> Any:
    """Returns the JSON value in a file.

    Args:
      path: a ``pathlib.Path`` or ``epath.Path``.

    Raises:
      ValueError: the file is not JSON, not a regular file, too large, or nested too deeply.
      OSError: it cannot be read.
    """
    check_regular(path)
    if os.path.exists(path) and os.path.getsize(path) > MAX_JSON_BYTES:
        raise ValueError(f"it is larger than {MAX_JSON_BYTES >> 20} MiB")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [child for item in level for child in _children(item)]
    if level:
        raise ValueError("it is nested too deeply")
    return value


def read_json_object(path: Any) -> dict[str, Any]:
    """Returns the JSON object in a file; raises as ``read_json`` does, and ValueError for any other value."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def read_names(value: tuple[str, ...] | str, *, key: str) -> tuple[str, ...]:
    """Names in their order, each once: as they are, or from a JSON file with a list of them."""
    if isinstance(value, str):
        try:
            content = read_json(Path(value))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{key}={value!r}: {error}") from None
        if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
            raise ConfigError(f"{key}={value!r}: expected a JSON list of {key.rpartition('.')[2]}")
        value = tuple(content)
    if len(set(value)) < len(value):
        repeated = min(name for name, count in collections.Counter(value).items() if count > 1)
        raise ConfigError(f"{key}: {repeated!r} is listed twice; list each once")
    return value


def check_regular(path: Any) -> None:
    """Raises ValueError if something else than a file is there, such as a pipe, from which reading may never end."""
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")


def find_irregular(folder: str | os.PathLike[str]) -> str | None:
    """Returns the path of something in a local folder that is neither a file nor a folder; None if there is nothing."""
    for parent, _, names in os.walk(folder):
        for path in (os.path.join(parent, name) for name in names):
            if not os.path.isfile(path) and os.path.lexists(path):
                return path
    return None


def _children(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
