"""Measures how fast a source becomes batches on this machine, and where the time goes."""

from __future__ import annotations

import copy
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mmjax.data.autotune import measure_rate
from mmjax.data.pipeline import Batches
from mmjax.data.preparing.progress import amount
from mmjax.data.sample import Example, Unreadable
from mmjax.data.source import Source
from mmjax.data.tokenizer import Tokenizer
from mmjax.data.transform_chain import TransformChain

STAGES = ("read", "decode and crop", "transforms", "tokenize", "assemble")
_CHUNK = 16  # examples per task of a thread
_PREFETCH = 2


def measure(
    source: Source,
    batches: Batches,
    *,
    evaluation: TransformChain,
    training: TransformChain,
    geometry: TransformChain,
    tokenizer: Tokenizer,
    batch_size: int,
    workers: int,
    threads: int,
    cores: int,
    seconds: float = 5.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures examples per second for more and more of the work.

    Args:
      source: read in random order, as in training; each measurement has its own copy.
      batches: of ``batch_size``.
      evaluation: the transforms of evaluation.
      training: the transforms of training.
      geometry: those of training up to the crop.
      tokenizer: of the batches.
      batch_size: rows of a batch.
      workers: processes that make batches.
      threads: for everything else, and in each process.
      cores: what rates are divided by.
      seconds: for each measurement.
      seed: of the order.

    Returns:
      Rates, fractions of time, sizes and memory as JSON values.
    """
    places = _RandomPlaces(len(source), seed)
    sizes = _PictureSizes(source.modalities)
    fractions = _time_fractions(source, batches, training, geometry, tokenizer, batch_size, places, seconds)

    def timed(work: Callable[[Example, int], None]) -> float:
        return _examples_per_second(copy.copy(source), work, places, threads, seconds)

    rate_of = {
        "read": timed(lambda example, _: sizes.add(example)),
        "read and decode": timed(lambda example, number: _view(evaluation, example, number)),
        "with training transforms": timed(lambda example, number: _view(training, example, number)),
    }
    stream = batches.stream(workers=workers, threads=threads, prefetch=_PREFETCH)
    try:
        per_second, count = measure_rate(stream, seconds=seconds, warmup=1 + _PREFETCH * max(workers, 1))
    finally:
        stream.close()
    rate_of["whole batches"] = per_second * batch_size
    return {
        "examples_per_second": rate_of,
        "per_core": {name: value / cores for name, value in rate_of.items()},
        "time_fractions": fractions,
        "picture_bytes": sizes.mean(),
        "bytes_per_second": rate_of["read"] * sizes.mean(),
        "batch_size": batch_size,
        "batches": count,
        "workers": workers,
        "threads": threads,
        "cores": cores,
        "memory_bytes": memory(),
    }


def text(summary: dict[str, Any], *, step_ms: float | None = None) -> str:
    """The measurements as text; ``step_ms`` is the duration of a training step, if that is known."""
    processes = f"{summary['workers']} process(es) of " if summary["workers"] else ""
    lines = [
        f"{'':26}  examples/s    per core    ({processes}{summary['threads']} thread(s), {summary['cores']} core(s))"
    ]
    for name, value in summary["examples_per_second"].items():
        lines.append(f"{name:26}  {value:10,.0f}  {summary['per_core'][name]:10,.0f}")
    fractions = "  ".join(f"{name} {fraction:.0%}" for name, fraction in summary["time_fractions"].items())
    lines += [
        f"time of one thread: {fractions}",
        f"pictures: {amount(summary['picture_bytes'])} an example, {amount(summary['bytes_per_second'])}/s read",
        f"memory: {amount(summary['memory_bytes'])} at most",
        verdict(summary["examples_per_second"]["whole batches"], summary["batch_size"], step_ms),
    ]
    return "\n".join(lines)


def verdict(have: float, batch_size: int, step_ms: float | None) -> str:
    """One line that says whether training would wait for data."""
    takes = 1000 * batch_size / have
    if step_ms is None:
        return f"a batch of {batch_size} takes {takes:,.3g} ms: shorter training steps than that wait for data"
    need = 1000 * batch_size / step_ms
    line = f"a step of {batch_size} in {step_ms:g} ms needs {need:,.0f} examples/s: have {have:,.0f}"
    if have >= need:
        return f"{line}, enough"
    return f"{line}, it waits for data {1 - have / need:.0%} of the time and takes {takes:,.3g} ms"


def memory() -> int:
    """Peak memory in bytes of this process and of child processes that have ended."""
    unit = 1 if sys.platform == "darwin" else 1024
    usages = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return unit * max(resource.getrusage(usage).ru_maxrss for usage in usages)


class _RandomPlaces:
    """An endless random sequence of places in the source."""

    def __init__(self, size: int, seed: int):
        self._size = size
        self._random = np.random.default_rng(seed)

    def take(self, count: int) -> list[int]:
        return self._random.integers(self._size, size=count).tolist()


class _PictureSizes:
    """The mean size in bytes of an example's pictures."""

    def __init__(self, modalities: Sequence[str]):
        self._modalities = modalities
        self._sizes: list[int] = []

    def add(self, example: Example) -> None:
        pictures = [example[name] for name in self._modalities]
        self._sizes.append(sum(p.nbytes if isinstance(p, np.ndarray) else len(p) for p in pictures))

    def mean(self) -> float:
        return sum(self._sizes) / max(len(self._sizes), 1)


def _examples_per_second(
    source: Source, work: Callable[[Example, int], None], places: _RandomPlaces, threads: int, seconds: float
) -> float:
    """Examples per second with ``threads``; unreadable ones count, because they take time too."""

    def chunk(indices: list[int]) -> int:
        for index in indices:
            try:
                work(source[index], index)
            except Exception:
                continue
        return len(indices)

    def rounds(pool: ThreadPoolExecutor) -> Iterator[int]:
        while True:
            yield sum(pool.map(chunk, [places.take(_CHUNK) for _ in range(threads)]))

    with ThreadPoolExecutor(threads) as pool:
        work_rounds = rounds(pool)
        next(work_rounds)  # warm-up
        start = now = time.perf_counter()
        done = 0
        while done == 0 or now - start < seconds:
            done += next(work_rounds)
            now = time.perf_counter()
    return done / (now - start)


def _view(chain: TransformChain, example: Example, number: int) -> None:
    chain.decode_and_transform(chain.apply_caption_transforms(example, number=number), example, number=number)


def _time_fractions(
    source: Source,
    batches: Batches,
    training: TransformChain,
    geometry: TransformChain,
    tokenizer: Tokenizer,
    batch_size: int,
    places: _RandomPlaces,
    seconds: float,
) -> dict[str, float]:
    """Fractions of the time that one thread needs for a batch; stages without a call of their own are differences."""
    source, batches = copy.copy(source), copy.copy(batches)
    known: set[str] = set()  # batches tokenize each text once, too

    def once(step: int) -> list[float]:
        """Seconds to read, to crop, to crop and transform, to tokenize, and for a whole batch."""
        examples = []
        started = time.perf_counter()
        for index in places.take(batch_size):
            try:
                examples.append(source.read(index))
            except Unreadable:
                continue
        times = [time.perf_counter() - started]
        for chain in (geometry, training):
            started = time.perf_counter()
            for number, example in enumerate(examples):
                try:
                    _view(chain, example, number)
                except Exception:
                    continue
            times.append(time.perf_counter() - started)
        texts = list({example["captions"][0] for example in examples} - known)
        known.update(texts)
        started = time.perf_counter()
        if texts:
            tokenizer(texts)
        times.append(time.perf_counter() - started)
        started = time.perf_counter()
        batches[step]
        return [*times, time.perf_counter() - started]

    once(0)  # warm-up
    deadline = time.perf_counter() + seconds
    # All stages in turn, so that other load on the machine affects them alike; medians, so that it affects few.
    times_of_batches = [once(1)]
    while time.perf_counter() < deadline:
        times_of_batches.append(once(1 + len(times_of_batches)))
    read, crop, view, tokenize, whole = (statistics.median(times) for times in zip(*times_of_batches, strict=True))
    spent = [read, crop, max(view - crop, 0.0), tokenize]
    spent.append(max(whole - sum(spent), 0.0))
    return {name: value / sum(spent) for name, value in zip(STAGES, spent, strict=True)}
