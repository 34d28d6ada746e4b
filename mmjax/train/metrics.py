"""The metrics of the steps: read one step late, with how fast the steps were."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import jax

from mmjax.core.state import TrainState
from mmjax.core.types import Metrics
from mmjax.program.chips import GIB, peak_flops
from mmjax.runs.timing import ActivityTimer
from mmjax.train.callbacks import Callback
from mmjax.train.guard import Diverged

logger = logging.getLogger(__name__)


class StepMetrics(Callback):
    """A callback that reads the metrics of step n while step n + 1 runs."""

    def __init__(
        self,
        on_metrics: Callable[..., None],
        *,
        every_steps: int,
        last_step: int,
        count_unreadable: Callable[[], jax.Array] | None = None,
    ):
        """Args:
        on_metrics: Called as ``on_metrics(step, values, is_logged=…)`` with those of each step, as numbers on the host.
        every_steps: How often metrics are written; those of the first and of the last step always are.
        last_step: The last step of the run.
        count_unreadable: Starts the sum over all processes of examples that could not be read.
        """
        self._on_metrics = on_metrics
        self._every_steps = every_steps
        self._last_step = last_step
        self._count_unreadable = count_unreadable
        self._pending: tuple[int, Metrics] | None = None

    def after_step(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Takes the metrics of the step just dispatched and reads those of the one before."""
        if self._count_unreadable is not None and self._is_logged(step):
            metrics = metrics | {"unreadable_examples": self._count_unreadable()}
        pending, self._pending = self._pending, (step, metrics)
        if pending is not None:
            self._read(*pending)

    def flush(self) -> None:
        """Reads what is still pending."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._read(*pending)

    def finish(self, step: int, state: TrainState) -> None:
        """Reads the last step."""
        self.flush()

    def on_divergence(self, step: int, state: TrainState) -> None:
        """Reads the step after the one that diverged: it is already done, and may have changed the state."""
        with contextlib.suppress(Diverged):
            self.flush()

    def _read(self, step: int, metrics: Metrics) -> None:
        values = {
            name if name.startswith("augment/") else f"train/{name}": float(value)
            for name, value in jax.device_get(metrics).items()
        }
        self._on_metrics(step, values, is_logged=self._is_logged(step))

    def _is_logged(self, step: int) -> bool:
        return step % self._every_steps == 0 or step in (1, self._last_step)


class Throughput:
    """How fast the steps are: examples and model FLOPs a second, their share of the peak, waits, memory.

    Only the time of steps and of waiting for data counts, so evaluations and saves do not look like slow steps.
    """

    def __init__(
        self,
        timer: ActivityTimer,
        *,
        batch_size: int,
        devices: int,
        flops: Callable[[], float | None],
        peak: float | None,
    ):
        """Args:
        timer: What the time of the run goes into.
        batch_size: Examples in a step.
        devices: How many run it.
        flops: The model's, of a step on all devices; None as long as they are not known.
        peak: FLOP/s of a device at the run's precision; None if no figure is published.
        """
        self._timer = timer
        self._batch_size = batch_size
        self._devices = devices
        self._flops = flops
        self._peak = peak
        self._memory_logged = False
        self._once: dict[str, float] = {}
        self._restart()

    def update_metrics(self, step: int, values: dict[str, float], *, is_logged: bool) -> None:
        """Adds rates since the last logged step to the metrics of a step, and to logged ones times and memory."""
        self._steps += 1
        values |= self.measure()
        if is_logged:
            values |= self._take_recorded()
            self._restart()

    def measure(self) -> dict[str, float]:
        """The rates of the steps since the last logged one."""
        steps, waited = self._timer.seconds("steps") - self._since[0], self._timer.seconds("data") - self._since[1]
        elapsed = max(steps + waited, 1e-9)
        speeds = {
            "train/examples_per_second": self._steps * self._batch_size / elapsed,
            "train/data_wait": waited / elapsed,
        }
        flops = self._flops()
        if flops is not None:
            speed = flops / self._devices * self._steps / elapsed
            speeds["train/flops_per_second_per_device"] = speed
            if self._peak is not None:
                speeds["train/mfu"] = speed / self._peak
        return speeds

    def record(self, name: str, seconds: float) -> None:
        """Keeps a time for the next metrics that are written; several of one name add up."""
        key = f"train/{name}"
        self._once[key] = self._once.get(key, 0.0) + seconds

    def _restart(self) -> None:
        self._steps = 0
        self._since = self._timer.seconds("steps"), self._timer.seconds("data")

    def _take_recorded(self) -> dict[str, float]:
        recorded, self._once = self._once, {}
        memory = memory_in_use()
        if not self._memory_logged and "train/hbm_peak_bytes" in memory:
            limit = max((device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices())
            of_limit = f" of {limit / GIB:.1f}" if limit else ""
            logger.info(
                f"device memory: at most {memory['train/hbm_peak_bytes'] / GIB:.1f}{of_limit} GiB in use so far"
            )
            self._memory_logged = True
        return recorded | memory


def peak_of(precision: str) -> float | None:
    """The published peak of a device here; float32 has none, because it runs in several ways."""
    return peak_flops(jax.local_devices()[0].device_kind) if precision == "bfloat16" else None


def memory_in_use() -> dict[str, float]:
    """Bytes in use, and the most so far, of the fullest local device; nothing if that is not known."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    metrics = {}
    for key, name in (("train/hbm_bytes", "bytes_in_use"), ("train/hbm_peak_bytes", "peak_bytes_in_use")):
        values = [device_stats[name] for device_stats in stats if name in device_stats]
        if values:
            metrics[key] = float(max(values))
    return metrics
