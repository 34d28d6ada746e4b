"""Which checkpoints are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class LatestAndBest:
    """A preservation policy for Orbax's manager: keeps the latest checkpoints and the best one.

    Orbax's BestN is no replacement (tried with 0.12.8): one NaN metric made it delete the best checkpoint, and one
    damaged metrics file made the manager raise when it opened the directory.

    Args:
      latest: number of latest checkpoints to keep.
      best: returns the best of some steps, or None.
    """

    def __init__(self, latest: int, best: Callable[[Sequence[int]], int | None]):
        self._latest = latest
        self._best = best

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns for each checkpoint whether to keep it."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        preserved = {*sorted(steps)[-self._latest :], self._best(steps)}
        return [step in preserved for step in steps]
