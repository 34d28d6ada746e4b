"""The metrics of the steps: read while the next step runs, shown, written now and then, and looked at."""

from __future__ import annotations

import jax

from mmjax.experiment import Experiment
from mmjax.runs.console import Progress
from mmjax.runs.metrics_file import MetricsWriter, NoMetrics
from mmjax.runs.unreadable_examples import UnreadableExamples
from mmjax.train.guard import Guard
from mmjax.train.rates import Rates


class Meter:
    """Reads the metrics of step n while step n + 1 runs; writes some of them, shows all, has the guard judge them."""

    def __init__(
        self,
        settings: Experiment,
        progress: Progress,
        writer: MetricsWriter | NoMetrics,
        rates: Rates,
        skips: UnreadableExamples,
        guard: Guard,
    ):
        self._settings = settings
        self._progress = progress
        self._writer = writer
        self._rates = rates
        self._skips = skips
        self._guard = guard
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self.restart()

    def restart(self) -> None:
        """Starts a new interval of time, so that an evaluation or a save is not counted as slow steps."""
        self._rates.restart()
        self._steps = 0

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of the step just dispatched and reads those of the one before."""
        if self._skips.is_distributed and self._is_logged(step):
            metrics = metrics | {"unreadable_examples": self._skips.total()}
        pending, self._pending = self._pending, (step, metrics)
        if pending is not None:
            self._read(*pending)

    def flush(self) -> None:
        """Reads what is still pending."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._read(*pending)

    def _read(self, step: int, metrics: dict[str, jax.Array]) -> None:
        values = {
            name if name.startswith("augment/") else f"train/{name}": float(value)
            for name, value in jax.device_get(metrics).items()
        }
        self._steps += 1
        rates = self._rates.over(self._steps)
        if self._skips.is_distributed:
            skipped = self._skips.to_row_count(int(values.pop("train/unreadable_examples", 0)))
            self._skips.check(skipped, step=step)
        else:
            skipped = self._skips.count
        if skipped:
            rates["train/unreadable_examples"] = skipped
        self._progress.step(step, values | rates)
        if self._is_logged(step):
            self._writer.write(step, values | rates | self._rates.told())
            self.restart()
        self._guard.judge(step, values)

    def _is_logged(self, step: int) -> bool:
        return step % self._settings.log.every_steps == 0 or step in (1, self._settings.steps)
