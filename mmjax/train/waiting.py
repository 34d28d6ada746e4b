"""Waiting for data: how long it took, and a word on the terminal when it takes too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE = 10.0  # seconds before the first word; the next ones come after twice as long each
_LOOK = 0.5


class Waiting:
    """An iterator that adds up how long ``next`` took, and says so while it takes long.

    A stalled file system or a worker without memory would otherwise look like a slow step.
    """

    def __init__(
        self, batches: Iterator[dict[str, Any]], *, note: Callable[[str], None] = print, patience: float = PATIENCE
    ):
        self._batches = batches
        self._note = note
        self._patience = patience
        self._since: float | None = None
        self._closed = threading.Event()
        self.seconds = 0.0
        self._watch = threading.Thread(target=self._watched, name="mmjax-waiting", daemon=True)
        self._watch.start()

    def __next__(self) -> dict[str, Any]:
        self._since = before = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self._since = None
            self.seconds += time.perf_counter() - before

    def close(self) -> None:
        """Stops watching."""
        self._closed.set()
        self._watch.join()

    def _watched(self) -> None:
        due = self._patience
        while not self._closed.wait(min(_LOOK, self._patience)):
            since = self._since
            waited = 0.0 if since is None else time.perf_counter() - since
            if since is None:
                due = self._patience
            elif waited >= due:
                self._note(
                    f"waiting for data for {waited:.0f} s; `mmjax data bench` tells which part of the pipeline is slow"
                )
                due *= 2
