"""How fast examples become batches here, and where the time goes."""

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

from mmjax.data.autotune import rate
from mmjax.data.pipeline import Batches
from mmjax.data.preparing.progress import amount
from mmjax.data.sample import Example, Unreadable
from mmjax.data.source import Source
from mmjax.data.tokenizer import Tokenizer
from mmjax.data.transform_chain import TransformChain

PARTS = ("read", "decode and crop", "transforms", "tokenize", "assemble")
_CHUNK = 16  # examples that a thread takes at a time
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
    """Rates of ever more of the work, each measured for ``seconds``; JSON can hold the result.

    Args:
      source: read in random order, as training does; each rate starts with a copy that remembers nothing.
      batches: of ``batch_size``.
      evaluation: how evaluation views an example.
      training: how training does.
      geometry: the same without what changes pixels and captions after the crop.
      tokenizer: of the batches.
      batch_size: rows.
      workers: processes that make batches.
      threads: how many do everything else, and make rows in each process.
      cores: what rates are divided by.
      seconds: for each rate.
      seed: of the order.
    """
    order = _Order(len(source), seed)
    sizes = _Sizes(source.modalities)
    shares = _shares(source, batches, training, geometry, tokenizer, batch_size, order, seconds)

    def timed(work: Callable[[Example, int], None]) -> float:
        return _examples(copy.copy(source), work, order, threads, seconds)

    rates = {
        "read": timed(lambda example, _: sizes.add(example)),
        "read and decode": timed(lambda example, number: _view(evaluation, example, number)),
        "with training transforms": timed(lambda example, number: _view(training, example, number)),
    }
    stream = batches.stream(workers=workers, threads=threads, prefetch=_PREFETCH)
    try:
        per_second, count = rate(stream, seconds=seconds, warm=1 + _PREFETCH * max(workers, 1))
    finally:
        stream.close()
    rates["whole batches"] = per_second * batch_size
    return {
        "examples_per_second": rates,
        "per_core": {name: value / cores for name, value in rates.items()},
        "shares": shares,
        "picture_bytes": sizes.mean(),
        "bytes_per_second": rates["read"] * sizes.mean(),
        "batch_size": batch_size,
        "batches": count,
        "workers": workers,
        "threads": threads,
        "cores": cores,
        "memory_bytes": memory(),
    }


def text(facts: dict[str, Any], *, step_ms: float | None = None) -> str:
    """The facts for people; ``step_ms`` is how long a training step takes, if that is known."""
    processes = f"{facts['workers']} process(es) of " if facts["workers"] else ""
    lines = [f"{'':26}  examples/s    per core    ({processes}{facts['threads']} thread(s), {facts['cores']} core(s))"]
    for name, value in facts["examples_per_second"].items():
        lines.append(f"{name:26}  {value:10,.0f}  {facts['per_core'][name]:10,.0f}")
    shares = "  ".join(f"{name} {share:.0%}" for name, share in facts["shares"].items())
    lines += [
        f"time of one thread: {shares}",
        f"pictures: {amount(facts['picture_bytes'])} an example, {amount(facts['bytes_per_second'])}/s read",
        f"memory: {amount(facts['memory_bytes'])} at most",
        verdict(facts["examples_per_second"]["whole batches"], facts["batch_size"], step_ms),
    ]
    return "\n".join(lines)


def verdict(have: float, batch_size: int, step_ms: float | None) -> str:
    """Whether training would wait for data."""
    takes = 1000 * batch_size / have
    if step_ms is None:
        return f"a batch of {batch_size} takes {takes:,.3g} ms: shorter training steps than that wait for data"
    need = 1000 * batch_size / step_ms
    line = f"a step of {batch_size} in {step_ms:g} ms needs {need:,.0f} examples/s: have {have:,.0f}"
    if have >= need:
        return f"{line}, enough"
    return f"{line}, it waits for data {1 - have / need:.0%} of the time and takes {takes:,.3g} ms"


def memory() -> int:
    """The most bytes that this process, or one that it waited for, ever had in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return unit * max(resource.getrusage(which).ru_maxrss for which in who)


class _Order:
    """Places in the source at random, again and again; every user goes on where the one before stopped."""

    def __init__(self, size: int, seed: int):
        self._size = size
        self._random = np.random.default_rng(seed)

    def take(self, count: int) -> list[int]:
        return self._random.integers(self._size, size=count).tolist()


class _Sizes:
    """The mean size of an example's pictures."""

    def __init__(self, modalities: Sequence[str]):
        self._modalities = modalities
        self._sizes: list[int] = []

    def add(self, example: Example) -> None:
        pictures = [example[name] for name in self._modalities]
        self._sizes.append(sum(p.nbytes if isinstance(p, np.ndarray) else len(p) for p in pictures))

    def mean(self) -> float:
        return sum(self._sizes) / max(len(self._sizes), 1)


def _examples(
    source: Source, work: Callable[[Example, int], None], order: _Order, threads: int, seconds: float
) -> float:
    """Examples a second with ``threads`` at work; those that cannot be used count, for they take time too."""

    def chunk(indices: list[int]) -> int:
        for index in indices:
            try:
                work(source[index], index)
            except Unreadable:
                continue
        return len(indices)

    def rounds(pool: ThreadPoolExecutor) -> Iterator[int]:
        while True:
            yield sum(pool.map(chunk, [order.take(_CHUNK) for _ in range(threads)]))

    with ThreadPoolExecutor(threads) as pool:
        going = rounds(pool)
        next(going)  # what is done once only
        start = now = time.perf_counter()
        done = 0
        while done == 0 or now - start < seconds:
            done += next(going)
            now = time.perf_counter()
    return done / (now - start)


def _view(chain: TransformChain, example: Example, number: int) -> None:
    chain.decode_and_transform(chain.apply_caption_transforms(example, number=number), example, number=number)


def _shares(
    source: Source,
    batches: Batches,
    training: TransformChain,
    geometry: TransformChain,
    tokenizer: Tokenizer,
    batch_size: int,
    order: _Order,
    seconds: float,
) -> dict[str, float]:
    """Shares of the time that one thread needs for a batch; the parts that are not calls are differences."""
    source, batches = copy.copy(source), copy.copy(batches)
    known: set[str] = set()  # batches, too, tokenize a text once

    def once(step: int) -> list[float]:
        """Seconds to read, to crop, to view, to tokenize, and for a whole batch."""
        examples = []
        started = time.perf_counter()
        for index in order.take(batch_size):
            try:
                examples.append(source[index])
            except Unreadable:
                continue
        times = [time.perf_counter() - started]
        for chain in (geometry, training):
            started = time.perf_counter()
            for number, example in enumerate(examples):
                try:
                    _view(chain, example, number)
                except Unreadable:
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

    once(0)  # what is done once only
    deadline = time.perf_counter() + seconds
    # In turns, so that whatever else the machine does hits all parts alike, and medians, so that it hits few.
    taken = [once(1)]
    while time.perf_counter() < deadline:
        taken.append(once(1 + len(taken)))
    read, crop, view, tokenize, whole = (statistics.median(times) for times in zip(*taken, strict=True))
    spent = [read, crop, max(view - crop, 0.0), tokenize]
    spent.append(max(whole - sum(spent), 0.0))
    return {name: value / sum(spent) for name, value in zip(PARTS, spent, strict=True)}
