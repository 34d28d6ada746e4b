"""Makes shards one after the other in this process."""

from __future__ import annotations

from collections.abc import Callable

from mmjax.generate.job import Phase


def run(phase: Phase, numbers: list[int], progress: Callable[[int], None]) -> None:
    """Makes the shards of those numbers; ``progress`` is called with numbers of examples that are done."""
    for number in numbers:
        phase(number, progress)
