"""How fast the steps are: examples and model FLOPs a second, the share of the peak, memory, waits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import jax

from mmjax.program.chips import GIB, peak_flops
from mmjax.runs.timing import ActivityTimer

logger = logging.getLogger(__name__)

_MEASURED = frozenset(
    f"train/{name}"
    for name in (
        "examples_per_second", "data_wait", "mfu", "flops_per_second_per_device", "hbm_bytes", "hbm_peak_bytes",
        "compile_seconds", "checkpoint_seconds", "checkpoint_disk_seconds",
    )
)  # fmt: skip


class Rates:
    """Rates over the steps since ``restart``, and times that are told once."""

    def __init__(
        self,
        clock: ActivityTimer,
        *,
        batch_size: int,
        devices: int,
        flops: Callable[[], float | None],
        peak: float | None,
    ):
        """``flops`` are the model's, of a step on all ``devices``, or None while they are not known.

        ``peak`` is a device's FLOP/s at the run's precision, None where there is no published one.
        """
        self._clock = clock
        self._batch_size = batch_size
        self._devices = devices
        self._flops = flops
        self._peak = peak
        self._memory_logged = False
        self._once: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Starts a new interval of time."""
        self._since = time.perf_counter()
        self._waited = self._clock.seconds("data")

    def over(self, steps: int) -> dict[str, float]:
        """The rates, if so many steps were done since ``restart``."""
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        rates = {
            "train/examples_per_second": steps * self._batch_size / elapsed,
            "train/data_wait": (self._clock.seconds("data") - self._waited) / elapsed,
        }
        flops = self._flops()
        if flops is not None:
            speed = flops / self._devices * steps / elapsed
            rates["train/flops_per_second_per_device"] = speed
            if self._peak is not None:
                rates["train/mfu"] = speed / self._peak
        return rates

    def tell(self, name: str, seconds: float) -> None:
        """Keeps a time for the next line that is written; several of one name add up."""
        key = f"train/{name}"
        self._once[key] = self._once.get(key, 0.0) + seconds

    def told(self) -> dict[str, float]:
        """What was told since the last call, and the memory in use."""
        once, self._once = self._once, {}
        found = memory()
        if not self._memory_logged and "train/hbm_peak_bytes" in found:
            most = max((device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices())
            share = f" of {most / GIB:.1f}" if most else ""
            logger.info(f"device memory: at most {found['train/hbm_peak_bytes'] / GIB:.1f}{share} GiB in use so far")
            self._memory_logged = True
        return once | found


def measured(name: str) -> bool:
    """Whether a metric says how fast a machine was, not what a run computed: no two runs have the same."""
    return name in _MEASURED or name.partition("/")[0] == "goodput"


def peak_of(precision: str) -> float | None:
    """The published peak of a device here; there is none to compare float32 with, which runs in several ways."""
    return peak_flops(jax.local_devices()[0].device_kind) if precision == "bfloat16" else None


def memory() -> dict[str, float]:
    """Bytes in use, and the most so far, of the device here that has the most; nothing where that is not known."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    found = {}
    for key, name in (("train/hbm_bytes", "bytes_in_use"), ("train/hbm_peak_bytes", "peak_bytes_in_use")):
        values = [one[name] for one in stats if name in one]
        if values:
            found[key] = float(max(values))
    return found
