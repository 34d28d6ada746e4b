"""Writes any source as a TFDS data set of ArrayRecord shards, with several processes; a killed run can continue."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.core.stuck_processes import stuck_workers
from mmjax.data.preparing.plan import check_same, common_schema, make_plan, read_example
from mmjax.data.preparing.progress import Counter, amount, time_left
from mmjax.data.preparing.reencoding import Reencoding
from mmjax.data.preparing.split_folder import UNREADABLE, Plan, SplitFolder
from mmjax.data.sample import as_unreadable
from mmjax.data.source import Source

logger = logging.getLogger(__name__)

# Random access needs groups of one record; pictures are compressed already.
_OPTIONS = "group_size:1,uncompressed"
_REPORTED = 16  # examples between two updates of the progress line
_PATIENCE_SECONDS = 10.0  # without progress, until workers that are stuck are named
_STOP = -(1 << 62)  # a value of the shared counter that ends the workers
_STOP_SECONDS = 10.0  # until workers that do not end, such as ones that wait for a disk, are killed


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a split holds after ``prepare``."""

    folder: str
    split: str
    shards: int
    examples: int
    captions: int
    bytes_in: int  # of pictures as they were
    bytes_out: int  # of the files
    unreadable: Mapping[str, int]  # by reason
    left_out: Mapping[str, str]  # fields that are not stored, to the reason
    seconds: float
    already: int  # shards that an earlier run wrote

    @property
    def unreadable_fraction(self) -> float:
        """The fraction of all examples."""
        unreadable = sum(self.unreadable.values())
        return unreadable / max(unreadable + self.examples, 1)


class Job:
    """Writes shards of one split; it is pickled for the worker processes."""

    def __init__(self, source: Source, reencoding: Reencoding, plan: Plan, folder: SplitFolder):
        self._source = source
        self._reencoding = reencoding
        self._plan = plan
        self._folder = folder

    def write(self, number: int, count: Callable[[int], None]) -> None:
        """Writes one shard and records that it is finished; calls ``count`` with numbers of examples done."""
        from array_record.python.array_record_module import ArrayRecordWriter

        plan, path = self._plan, self._folder.temporary(number)
        record: dict[str, Any] = {"examples": 0, "captions": 0, "bytes_in": 0, "record_bytes": 0}
        unreadable: list[tuple[str, str, str]] = []
        unknown: collections.Counter[str] = collections.Counter()
        with self._folder.write_errors():
            writer = ArrayRecordWriter(str(path), _OPTIONS)
        try:
            for done, index in enumerate(plan.range(number)):
                if done % _REPORTED == _REPORTED - 1:
                    count(_REPORTED)
                try:
                    example, pictures = read_example(self._source, index, self._reencoding)
                    packed = plan.schema.pack(example, pictures)
                except Exception as error:
                    problem = as_unreadable(error, f"example {index}")
                    unreadable.append((problem.key, problem.reason, problem.detail))
                    continue
                with self._folder.write_errors():
                    writer.write(packed)
                record["examples"] += 1
                record["captions"] += len(example["captions"])
                record["bytes_in"] += sum(_size(example[name]) for name in plan.schema.modalities)
                record["record_bytes"] += len(packed)
                unknown.update(name for name in plan.schema.unknown(example) if name not in plan.asked["drop"])
            with self._folder.write_errors():
                writer.close()
                record |= {"bytes_out": path.stat().st_size, "unreadable": unreadable, "unknown": unknown}
                self._folder.finish_shard(number, plan.shards, record)
        except BaseException:
            with contextlib.suppress(RuntimeError):
                writer.close()
            path.unlink(missing_ok=True)  # a full disk needs the room
            raise
        count(len(plan.range(number)) % _REPORTED)


def prepare(
    source: Source,
    folder: SplitFolder,
    *,
    asked: Mapping[str, Any],
    reencoding: Reencoding,
    shards: int | None = None,
    shard_mib: int = 256,
    limit: int | None = None,
    drop: Sequence[str] = (),
    workers: int = 1,
) -> Summary:
    """Writes ``source`` as one split of the data set in ``folder``, or those shards that are missing.

    Args:
      source: pickled once for each worker.
      folder: where to write.
      asked: identifies the source; a split is only continued if this is the same.
      reencoding: how pictures are stored.
      shards: how many; by default as many as give files of about ``shard_mib``.
      shard_mib: approximate size of a shard.
      limit: writes only that many examples, the first ones.
      drop: fields that are not stored.
      workers: processes; 1 writes in this process.
    """
    started = time.monotonic()
    for name, value in (("shards", shards), ("shard-mib", shard_mib), ("limit", limit), ("workers", workers)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name}={value}: must be at least 1")
    examples = len(source) if limit is None else min(limit, len(source))
    asked = {
        **asked, "examples": len(source), "ids": source.id_limit, "limit": limit,
        "shards": shards, "shard-mib": None if shards else shard_mib,
        "image-size": reencoding.image_size, "format": reencoding.format, "quality": reencoding.quality,
        "drop": sorted(drop),
    }  # fmt: skip
    with folder.locked():
        plan = folder.plan()
        new_plan = make_plan(
            source, reencoding, asked, examples=examples, shards=shards, shard_mib=shard_mib, drop=drop
        )
        if plan is None:
            plan = dataclasses.replace(new_plan, schema=common_schema(new_plan, folder.other_plans(), folder.split))
            with folder.write_errors():
                folder.begin(plan)
        else:
            check_same(plan, new_plan, folder)
        missing = [number for number in range(plan.shards) if not _is_finished(folder, plan, number)]
        already = plan.shards - len(missing)
        if source.group > 1:
            logger.info(f"the source's groups of {source.group} neighbors are stored as single examples")
        if already:
            logger.info(f"{already} of {plan.shards} shards exist already")
        before = examples - sum(len(plan.range(number)) for number in missing)
        with Counter(examples, unit="examples", already=before) as progress:
            _write_all(Job(source, reencoding, plan, folder), missing, workers, lambda done: progress(before + done))
        with folder.write_errors():
            folder.publish()
        return _summary(folder, plan, new_plan.schema.left_out, time.monotonic() - started, already)


def text(summary: Summary) -> str:
    """The summary as text."""
    lines = [
        f"{summary.folder}: split {summary.split!r}, {summary.shards} shard(s), {time_left(summary.seconds)}",
        f"  written  {summary.examples:,} examples, {summary.captions:,} captions",
        f"  pictures {amount(summary.bytes_in)} in, files {amount(summary.bytes_out)} out",
    ]
    if summary.unreadable:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(summary.unreadable.items()))
        lines.append(
            f"  unreadable {sum(summary.unreadable.values()):,} ({summary.unreadable_fraction:.2%}): {reasons}"
        )
        lines.append(f"             listed in {UNREADABLE}")
    lines += [f"  no field {name!r}: {reason}" for name, reason in summary.left_out.items()]
    return "\n".join(lines)


def _is_finished(folder: SplitFolder, plan: Plan, number: int) -> bool:
    record, path = folder.record(number), folder.shard(number, plan.shards)
    return record is not None and path.is_file() and path.stat().st_size == record["bytes_out"]


def _summary(folder: SplitFolder, plan: Plan, left_out: Mapping[str, str], seconds: float, already: int) -> Summary:
    records = [record for number in range(plan.shards) if (record := folder.record(number)) is not None]
    unreadable = collections.Counter(reason for _, reason, _ in plan.unreadable)
    unknown: collections.Counter[str] = collections.Counter()
    for record in records:
        unreadable.update(reason for _, reason, _ in record["unreadable"])
        unknown.update(record["unknown"])
    late = {name: f"in {count:,} examples, but in none of those sampled" for name, count in unknown.items()}
    totals = {key: sum(r[key] for r in records) for key in ("examples", "captions", "bytes_in", "bytes_out")}
    return Summary(
        folder=str(folder.path), split=folder.split, shards=plan.shards, **totals, unreadable=dict(unreadable),
        left_out={**left_out, **late}, seconds=seconds, already=already,
    )  # fmt: skip


def _size(picture: Any) -> int:
    return getattr(picture, "nbytes", None) or len(picture)


def _write_all(job: Job, numbers: Sequence[int], workers: int, progress: Callable[[int], None]) -> None:
    workers = min(workers, len(numbers))
    if workers <= 1:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            progress(done)

        for number in numbers:
            job.write(number, count)
        return
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(job, counter)) as pool:
        waiting = {pool.submit(_write, number) for number in numbers}
        before, since, patience = 0, time.monotonic(), _PATIENCE_SECONDS
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                progress(counter.value)
                if counter.value != before:
                    before, since, patience = counter.value, time.monotonic(), _PATIENCE_SECONDS
                elif time.monotonic() - since > patience and (stuck := stuck_workers()):
                    logger.warning(f"no example was written for {time.monotonic() - since:.0f} s; {'; '.join(stuck)}")
                    patience *= 2
        except BaseException as error:
            counter.value = _STOP
            # Nothing is written after this returns: the folder's lock is about to be released.
            begun = [future for future in waiting if not future.cancel()]
            if wait(begun, timeout=_STOP_SECONDS).not_done:
                for worker in set(multiprocessing.active_children()) - others:
                    worker.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise ConfigError(
                    f"--workers={workers}: a worker was killed, perhaps because memory ran out; the same command "
                    "continues from the finished shards, or use fewer workers"
                ) from None
            raise


_worker: tuple[Job, Any]


def _start_worker(job: Job, counter: Any) -> None:
    """Makes this process a worker, which exits when its parent does, even if that one was killed."""
    global _worker
    _worker = (job, counter)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends its workers
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write(number: int) -> None:
    job, counter = _worker

    def count(more: int) -> None:
        with counter.get_lock():
            if counter.value < 0:
                raise RuntimeError("stopped")
            counter.value += more

    job.write(number, count)
