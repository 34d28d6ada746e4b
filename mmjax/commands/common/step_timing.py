"""Speed and memory of the compiled training step, for one or several experiments in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.core.state import TrainState
from mmjax.core.types import Batch
from mmjax.experiment import Experiment
from mmjax.program.chips import Chip, find_chip, peak_flops
from mmjax.program.flops import count_pallas_flops
from mmjax.program.hlo import Module
from mmjax.program.kernels import find_kernels, summarize_by_kind
from mmjax.program.source_lines import SourceLines
from mmjax.runs.timing import ActivityTimer
from mmjax.train.data import stream_batches
from mmjax.train.profiler import Profiler
from mmjax.train.setup import setup

_BATCHES = 8  # that are timed
_PROFILED_STEPS = 3


def time_steps(
    experiments: Sequence[tuple[str, Experiment]], *, repeats: int, profile: str | None = None
) -> list[dict[str, Any]]:
    """One row for each experiment: median step time, examples a second, FLOPs, memory, and ratio to the first row.

    The rows' steps are timed in turn, A B A B …, so that a machine whose speed drifts does not favor one.

    Args:
        experiments: What to train, with the name of its row.
        repeats: Timed steps of each row.
        profile: A folder for traces of some further steps, in a folder for each row; None for none.
    """
    timers = [_Timer(name, experiment) for name, experiment in experiments]
    for _ in range(repeats):
        for timer in timers:
            timer.time()
    if profile is not None:
        for timer in timers:
            timer.profile(Path(profile) / timer.name)
    return [timer.row(timers[0]) for timer in timers]


def compare_steps(experiments: Sequence[tuple[str, Experiment]], *, repeats: int) -> list[dict[str, Any]]:
    """Step time of each experiment beside the first, two at a time on the device, and the time that its batches take.

    Returns:
        For each: ``recipe``, ``seconds`` (median of its steps), ``first_seconds`` and ``ratio`` of the first's steps,
        timed in turn, with quartiles ``low`` and ``high``; ``batch_seconds``, to make a batch in one thread, and
        ``batch_ratio``.
    """
    first = _Timer(*experiments[0])
    rows = []
    for number, (name, experiment) in enumerate(experiments):
        timer = _Timer(name, experiment) if number else first
        first.seconds.clear()
        for _ in range(repeats):
            for one in dict.fromkeys((first, timer)):
                one.time()
        # Twice, so that what a source keeps in memory is there for both.
        passes = [[(timer.time_batch(step), first.time_batch(step)) for step in range(_BATCHES)] for _ in range(2)]
        batches = passes[1]
        ratios = [a / b for a, b in zip(timer.seconds, first.seconds, strict=True)]
        low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
        rows.append(
            {
                "recipe": name,
                "seconds": statistics.median(timer.seconds),
                "first_seconds": statistics.median(first.seconds),
                "ratio": median,
                "low": low,
                "high": high,
                "batch_seconds": statistics.median(own for own, _ in batches),
                "batch_ratio": statistics.median(own / base for own, base in batches) if number else 1.0,
            }
        )
    return rows


class _Timer:
    """One compiled step with its own state, on one batch that stays on the device."""

    def __init__(self, name: str, experiment: Experiment):
        resolved = setup(experiment)
        program = resolved.program
        self.name = name
        self.batch_size = experiment.batch_size
        self.devices = jax.device_count()
        self.half = experiment.precision == "bfloat16"
        self.batches = resolved.make_batches()
        batches = stream_batches(experiment.data, self.batches)
        arrays = next(iter(batches))
        batches.close()
        self.batch: Batch = program.place(arrays)
        before = time.perf_counter()
        traced = program.trace(program.batch_shape(arrays))
        self.compiled = traced.lower().compile()
        self.compile_seconds = time.perf_counter() - before
        # The compiler's own count takes the body of a loop, such as that over layers, once.
        self.flops = program.count_flops(program.batch_shape(arrays)) / self.devices
        self.attention = {tower: str(choice) for tower, choice in program.attention.items()}
        chip = find_chip(jax.devices()[0].device_kind)
        self.kernels = None if chip is None else summarize_kernels(self.compiled, traced, chip)
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

    def time_batch(self, step: int) -> float:
        """Seconds to make the batch of one step in this thread."""
        before = time.perf_counter()
        self.batches[step]
        return time.perf_counter() - before

    def profile(self, folder: Path) -> None:
        profiler = Profiler((1, _PROFILED_STEPS), folder, begin=0, program=self.compiled, timer=ActivityTimer())
        for step in range(1, _PROFILED_STEPS + 1):
            profiler.before_step(step, self.state)
            self.state, metrics = self.compiled(self.state, self.batch)
            profiler.after_step(step, self.state, metrics)

    def row(self, first: _Timer) -> dict[str, Any]:
        """The figures for one device: FLOPs of the model's products, memory by the compiler.

        If the device's published figures are known, the program's kernels by kind, as ``mmjax compile`` gives them, and
        the time of all of them one after the other.
        """
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
            "modeled_seconds": None if self.kernels is None else sum(kind["seconds"] for kind in self.kernels),
            "kernels": self.kernels,
            "attention": self.attention,
            "argument_bytes": getattr(memory, "argument_size_in_bytes", None),
            "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
            "peak_bytes": _peak_bytes(),
            "compile_seconds": self.compile_seconds,
            "ratio": statistics.median(a / b for a, b in zip(self.seconds, first.seconds, strict=True)),
        }


def summarize_kernels(compiled: jax.stages.Compiled, traced: jax.stages.Traced, chip: Chip) -> list[dict[str, Any]]:
    """Executions, bytes, FLOPs and modeled seconds of the program's kernels by kind, the longest first."""
    text = str(compiled.as_text())
    pallas = count_pallas_flops(traced.jaxpr)
    return summarize_by_kind(find_kernels(Module(text), chip, SourceLines(text), pallas=pallas))


def _peak_bytes() -> int | None:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
