"""Requests to stop: SIGTERM and Ctrl-C, which end a run after a step and a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Iterator
from typing import Any

import jax

from mmjax.parallel import distributed


@dataclasses.dataclass
class Stop:
    """Whether the run was asked to stop, and by what."""

    asked: bool = False
    name: str = ""

    def after(self, step: int) -> bool:
        """Whether this step was the last for now; of several processes all say so at the same one."""
        if distributed.asked_to_stop(step):
            self.asked, self.name = True, signal.SIGTERM.name
        return self.asked


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Stop]:
    """Turns SIGTERM and the first Ctrl-C into a request that the loop looks at after each step.

    With several processes jax itself listens for SIGTERM, and gets Ctrl-C as such.
    """
    stop = Stop()
    alone = jax.process_count() == 1

    def ask(number: int, _: Any) -> None:
        if alone:
            stop.asked, stop.name = True, signal.Signals(number).name
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C means now

    numbers = (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
