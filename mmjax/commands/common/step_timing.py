"""Speed and memory of the compiled training step, for one or several augmentations in one process."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mmjax.core.state import TrainState
from mmjax.core.types import Batch
from mmjax.experiment import Experiment
from mmjax.program.chips import peak_flops
from mmjax.train.data import stream_batches
from mmjax.train.setup import setup


def time_steps(experiment: Experiment, *, augmentations: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """One row for each augmentation: median step time, examples a second, FLOPs, memory, and ratio to the first row.

    The rows' steps are timed in turn, A B A B …, so that a machine whose speed drifts does not favor one.

    Args:
        experiment: What to train.
        augmentations: ``NAME[+NAME]`` or ``none``, a row each; if empty, one row with the experiment's own.
        repeats: Timed steps of each row.
    """
    if augmentations:
        timers = [_Timer(name, dataclasses.replace(experiment, augment=_entries(name))) for name in augmentations]
    else:
        timers = [_Timer("+".join(name for name, _ in experiment.augment) or "none", experiment)]
    for _ in range(repeats):
        for timer in timers:
            timer.time()
    return [timer.row(timers[0]) for timer in timers]


class _Timer:
    """One compiled step with its own state, on one batch that stays on the device."""

    def __init__(self, name: str, experiment: Experiment):
        resolved = setup(experiment)
        program = resolved.program
        self.name = name
        self.batch_size = experiment.batch_size
        self.devices = jax.device_count()
        self.half = experiment.precision == "bfloat16"
        batches = stream_batches(experiment.data, resolved.make_batches())
        arrays = next(iter(batches))
        batches.close()
        self.batch: Batch = program.place(arrays)
        before = time.perf_counter()
        self.compiled = program.compile(program.batch_shape(arrays))
        self.compile_seconds = time.perf_counter() - before
        # The compiler's own count takes the body of a loop, such as that over layers, once.
        self.flops = program.count_flops(program.batch_shape(arrays)) / self.devices
        self.state: TrainState = program.initialize()
        self.seconds: list[float] = []
        for _ in range(2):  # the first runs allocate and fill caches
            self.time()
        self.seconds.clear()

    def time(self) -> None:
        jax.block_until_ready(self.state)
        before = time.perf_counter()
        self.state, metrics = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        self.seconds.append(time.perf_counter() - before)

    def row(self, first: _Timer) -> dict[str, Any]:
        """The figures for one device: FLOPs of the model's products, memory by the compiler."""
        seconds = statistics.median(self.seconds)
        memory = self.compiled.memory_analysis()
        peak = peak_flops(jax.devices()[0].device_kind) if self.half else None
        return {
            "augment": self.name,
            "seconds": seconds,
            "seconds_min": min(self.seconds),
            "seconds_max": max(self.seconds),
            "examples_per_second": self.batch_size / seconds,
            "flops_per_device": self.flops,
            "flops_per_second_per_device": self.flops / seconds,
            "mfu": None if peak is None else self.flops / seconds / peak,
            "argument_bytes": getattr(memory, "argument_size_in_bytes", None),
            "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
            "peak_bytes": _peak_bytes(),
            "compile_seconds": self.compile_seconds,
            "ratio": statistics.median(a / b for a, b in zip(self.seconds, first.seconds, strict=True)),
        }


def _peak_bytes() -> int | None:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _entries(names: str) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    return () if names == "none" else tuple((name, {}) for name in names.split("+"))
