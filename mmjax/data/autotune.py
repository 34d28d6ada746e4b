"""How many processes and threads read fastest here: measured, not guessed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from mmjax.data.pipeline import Stream

_PREFETCH = 2
_APART = 10_007  # steps between what two candidates read, so that the later one does not find warm files
_SCALES = 0.7  # threads that reach this share of what so many cores could do need no processes
_AS_GOOD = 0.95  # of the best


class Streams(Protocol):
    """What is tuned: ``mmjax.data.pipeline.Batches``."""

    def stream(self, *, start_step: int, workers: int, threads: int, prefetch: int) -> Stream:
        """Batches made by so many processes and threads."""


def tune(
    batches: Streams,
    *,
    cores: int,
    seconds: float = 2.0,
    note: Callable[[str], None] = print,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[int, int]:
    """The (workers, threads) of the highest rate of batches; of those within 5 % of it, the fewest.

    Threads are tried first, each number for ``seconds``. Processes cost memory and a start of seconds, and are tried
    only where threads do not make use of the cores.
    """
    rates: dict[tuple[int, int], float] = {}

    def measure(workers: int, threads: int) -> float:
        rate = _rate(batches, len(rates) * _APART, workers, threads, seconds, clock)
        rates[workers, threads] = rate
        note(f"autotune: {_words(workers, threads)}: {rate:.3g} batches/s")
        return rate

    single = measure(0, 1)
    best = max([single, *(measure(0, threads) for threads in _counts(cores) if threads > 1)])
    if best < _SCALES * cores * single:
        for workers in _counts(cores):
            if workers <= cores:
                measure(workers, 1)
    best = max(rates.values())
    workers, threads = min(candidate for candidate, rate in rates.items() if rate >= _AS_GOOD * best)
    note(f"autotune: chose {_words(workers, threads)}")
    return workers, threads


def rate(
    stream: Stream, *, seconds: float, warm: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, int]:
    """Batches a second, and how many were counted, after the ``warm`` first ones; at least one takes part."""
    deadline = clock() + seconds
    next(stream)
    for _ in range(warm - 1):
        if clock() > deadline:
            break
        next(stream)
    start = now = clock()
    count = 0
    while count == 0 or now - start < seconds:
        next(stream)
        count += 1
        now = clock()
    return count / max(now - start, 1e-9), count


def _rate(
    batches: Streams, start_step: int, workers: int, threads: int, seconds: float, clock: Callable[[], float]
) -> float:
    stream = batches.stream(start_step=start_step, workers=workers, threads=threads, prefetch=_PREFETCH)
    try:
        # What lies ready when the first batch comes says nothing of the rate.
        return rate(stream, seconds=seconds, warm=1 + _PREFETCH * max(workers, 1), clock=clock)[0]
    finally:
        stream.close()


def _counts(cores: int) -> list[int]:
    return sorted({1, max(cores // 2, 1), cores, 2 * cores})


def _words(workers: int, threads: int) -> str:
    text = f"{threads} thread" + ("s" if threads > 1 else "")
    return f"{workers} process{'es' if workers > 1 else ''} of {text}" if workers else text
