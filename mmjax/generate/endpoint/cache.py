"""Answers on disk, so that no request is paid for twice."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from mmjax.core.atomic import write_atomically
from mmjax.core.config import ConfigError

_log = logging.getLogger(__name__)


class AnswerCache:
    """A folder with a file for each request; several threads and processes may use it at a time.

    Args:
      folder: None remembers nothing.
    """

    def __init__(self, folder: str | None):
        self._folder = None if not folder else Path(folder).expanduser()
        if self._folder is not None:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(
                    f"cache={folder!r}: {error.strerror or error}; name a folder that can be written, or None"
                ) from None

    def get(self, key: str) -> list[str] | None:
        """The answers to a request; None if there are none, or their file is damaged."""
        if self._folder is None:
            return None
        try:
            stored = json.loads(self._path(key).read_bytes())
            answers = stored["answers"] if stored["sha256"] == _sha256(stored["answers"]) else None
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        return answers

    def put(self, key: str, answers: list[str]) -> None:
        """Stores the answers; if the disk is full they are only lost to the next run."""
        if self._folder is None:
            return
        try:
            self._path(key).parent.mkdir(exist_ok=True)
            write_atomically(self._path(key), json.dumps({"answers": answers, "sha256": _sha256(answers)}))
        except OSError as error:
            _log.warning("%s: an answer is not cached (%s)", self._folder, error.strerror or error)

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / key[:2] / f"{key[2:]}.json"


def request_key(**values: Any) -> str:
    """SHA-256 of everything that an answer depends on."""
    return _sha256(values)


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
