"""The batches of a run from any step on: rewinds leave some out, waits are timed, unreadable examples counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmjax.data import pipeline
from mmjax.runs.rewinds import Rewinds
from mmjax.runs.timing import ActivityTimer
from mmjax.runs.unreadable_examples import UnreadableExamples


class BatchFeed:
    """Opens the batches of a run at any step."""

    def __init__(
        self,
        open_stream: Callable[[int], pipeline.Stream],
        *,
        rewinds: Rewinds,
        next_refresh: Callable[[int], int],
        timer: ActivityTimer,
        unreadable: UnreadableExamples,
    ):
        """``open_stream`` gives the batches from a number on; it is called again at each ``next_refresh`` of a step."""
        self._open_stream = open_stream
        self._rewinds = rewinds
        self._next_refresh = next_refresh
        self._timer = timer
        self._unreadable = unreadable

    def open(self, step: int) -> contextlib.closing[OpenFeed]:
        """The batches of the steps after ``step``; a context manager that ends the threads which read ahead."""
        return contextlib.closing(OpenFeed(self._numbered(step), step, self._timer, self._unreadable))

    def _numbered(self, step: int) -> Iterator[dict[str, Any]]:
        while True:
            end = min(self._rewinds.next_rewind(step), self._next_refresh(step))
            with contextlib.closing(self._open_stream(self._rewinds.next_batch(step))) as stream:
                while step < end:
                    yield next(stream)
                    step += 1


class OpenFeed:
    """Batches that are being read, in the order of the steps."""

    def __init__(
        self, batches: Iterator[dict[str, Any]], step: int, timer: ActivityTimer, unreadable: UnreadableExamples
    ):
        self._batches = batches
        self._step = step
        self._timer = timer
        self._unreadable = unreadable

    def next(self, *, running: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """This process's rows of the next batch; to wait costs nothing while the step of ``running`` metrics runs."""
        running = running or {}
        with self._timer.measure("data", hidden=lambda: not all(value.is_ready() for value in running.values())):
            arrays = next(self._batches)
        self._step += 1
        self._unreadable.add_batch(self._step, arrays.pop("unreadable"), rows=len(arrays["image_ids"]))
        return arrays

    def close(self) -> None:
        """Ends the threads and processes that read ahead."""
        self._batches.close()  # type: ignore[attr-defined]  # of a generator
