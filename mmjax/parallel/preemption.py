"""Stop requests: SIGTERM and Ctrl-C end a run after the current step and a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Iterator
from typing import Any

import jax

from mmjax.parallel import collectives


@dataclasses.dataclass
class StopRequest:
    """Whether the run was asked to stop, and by which signal."""

    requested: bool = False
    signal_name: str = ""

    def check(self, step: int) -> bool:
        """Whether the run stops after this step; all processes agree on the step."""
        if collectives.should_stop(step):
            self.requested, self.signal_name = True, signal.SIGTERM.name
        return self.requested


@contextlib.contextmanager
def handle_stop_signals() -> Iterator[StopRequest]:
    """Turns SIGTERM and the first Ctrl-C into a ``StopRequest``, which the loop checks after each step.

    With several processes JAX listens for SIGTERM itself, and Ctrl-C is passed to it as SIGTERM.
    """
    stop = StopRequest()
    single_process = jax.process_count() == 1

    def request(number: int, _: Any) -> None:
        if single_process:
            stop.requested, stop.signal_name = True, signal.Signals(number).name
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C interrupts at once

    numbers = (signal.SIGTERM, signal.SIGINT) if single_process else (signal.SIGINT,)
    previous = {number: signal.signal(number, request) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
