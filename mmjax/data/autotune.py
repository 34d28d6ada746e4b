"""Measures which numbers of worker processes and threads read batches fastest on this machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from mmjax.data.pipeline import Stream

logger = logging.getLogger(__name__)

_PREFETCH = 2
_STEPS_APART = 10_007  # between candidates, so that the later one does not find its files cached
_SCALING = 0.7  # if threads reach this fraction of a linear speed-up over the cores, processes are not tried
_TOLERANCE = 0.95  # of the best rate


class Streams(Protocol):
    """What is tuned: ``mmjax.data.pipeline.Batches``."""

    def stream(self, *, start_step: int, workers: int, threads: int, prefetch: int) -> Stream:
        """Batches made by that many processes and threads."""


def tune(
    batches: Streams, *, cores: int, seconds: float = 2.0, timer: Callable[[], float] = time.perf_counter
) -> tuple[int, int]:
    """Finds the fastest numbers of processes and threads.

    Threads are tried first. Processes cost memory and seconds to start, so they are tried only if threads do not use
    the cores well.

    Args:
      batches: what to read.
      cores: of this machine.
      seconds: to measure each candidate.
      timer: a monotonic clock in seconds.

    Returns:
      ``(workers, threads)``: the smallest candidate within 5 % of the best rate.
    """
    rate_of: dict[tuple[int, int], float] = {}

    def measure(workers: int, threads: int) -> float:
        stream = batches.stream(
            start_step=len(rate_of) * _STEPS_APART, workers=workers, threads=threads, prefetch=_PREFETCH
        )
        try:
            # Batches that are prefetched before the first one arrives do not count.
            rate, _ = measure_rate(stream, seconds=seconds, warmup=1 + _PREFETCH * max(workers, 1), timer=timer)
        finally:
            stream.close()
        rate_of[workers, threads] = rate
        logger.info(f"autotune: {_candidate(workers, threads)}: {rate:.3g} batches/s")
        return rate

    single = measure(0, 1)
    best = max([single, *(measure(0, threads) for threads in _counts(cores) if threads > 1)])
    if best < _SCALING * cores * single:
        for workers in _counts(cores):
            if workers <= cores:
                measure(workers, 1)
    best = max(rate_of.values())
    workers, threads = min(candidate for candidate, rate in rate_of.items() if rate >= _TOLERANCE * best)
    logger.info(f"autotune: chose {_candidate(workers, threads)}")
    return workers, threads


def measure_rate(
    stream: Stream, *, seconds: float, warmup: int, timer: Callable[[], float] = time.perf_counter
) -> tuple[float, int]:
    """Batches per second after ``warmup`` batches, and how many were counted, at least one."""
    deadline = timer() + seconds
    next(stream)
    for _ in range(warmup - 1):
        if timer() > deadline:
            break
        next(stream)
    start = now = timer()
    count = 0
    while count == 0 or now - start < seconds:
        next(stream)
        count += 1
        now = timer()
    return count / max(now - start, 1e-9), count


def _counts(cores: int) -> list[int]:
    return sorted({1, max(cores // 2, 1), cores, 2 * cores})


def _candidate(workers: int, threads: int) -> str:
    text = f"{threads} thread" + ("s" if threads > 1 else "")
    return f"{workers} process{'es' if workers > 1 else ''} of {text}" if workers else text
