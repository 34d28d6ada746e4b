"""Any source as a TFDS data set of ArrayRecord shards, made by several processes; what was killed goes on."""

from __future__ import annotations

import collections
import dataclasses
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
from mmjax.data.preparing.planning import check_same, common_schema, planned, read
from mmjax.data.preparing.prepared import SKIPPED, Folder, Plan
from mmjax.data.preparing.progress import Counter, amount, time_left
from mmjax.data.preparing.reencoding import Reencoding
from mmjax.data.sample import Unreadable
from mmjax.data.source import Source

# Groups of one record are what random access needs; pictures are compressed already.
_OPTIONS = "group_size:1,uncompressed"
_COUNTED = 16  # examples between two signs of life
_STOP = -(1 << 62)  # of the workers' counter: end at once


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a split holds now."""

    folder: str
    split: str
    shards: int
    examples: int
    captions: int
    bytes_in: int  # of pictures as they were
    bytes_out: int  # of the files
    skipped: Mapping[str, int]  # by reason
    left_out: Mapping[str, str]  # fields that are not stored, and why
    seconds: float
    already: int  # shards that were there before

    @property
    def skipped_share(self) -> float:
        """Of all examples that there were."""
        skipped = sum(self.skipped.values())
        return skipped / max(skipped + self.examples, 1)


class Job:
    """Makes shards of one split; it travels to the worker processes."""

    def __init__(self, source: Source, reencoding: Reencoding, plan: Plan, folder: Folder):
        self._source = source
        self._reencoding = reencoding
        self._plan = plan
        self._folder = folder

    def write(self, number: int, count: Callable[[int], None]) -> None:
        """Writes one shard and notes that it is finished; ``count`` hears of examples done."""
        from array_record.python.array_record_module import ArrayRecordWriter

        plan, path = self._plan, self._folder.temporary(number)
        record: dict[str, Any] = {"examples": 0, "captions": 0, "bytes_in": 0, "record_bytes": 0}
        skipped: list[tuple[str, str, str]] = []
        unknown: collections.Counter[str] = collections.Counter()
        writer = ArrayRecordWriter(str(path), _OPTIONS)
        try:
            for done, index in enumerate(plan.range(number)):
                if done % _COUNTED == _COUNTED - 1:
                    count(_COUNTED)
                try:
                    example, pictures = read(self._source, index, self._reencoding)
                    packed = plan.schema.pack(example, pictures)
                except Unreadable as error:
                    skipped.append((error.key or f"example {index}", error.reason, error.detail))
                    continue
                writer.write(packed)
                record["examples"] += 1
                record["captions"] += len(example["captions"])
                record["bytes_in"] += sum(_size(example[name]) for name in plan.schema.modalities)
                record["record_bytes"] += len(packed)
                unknown.update(name for name in plan.schema.unknown(example) if name not in plan.asked["drop"])
        finally:
            writer.close()
        count(len(plan.range(number)) % _COUNTED)
        record |= {"bytes_out": path.stat().st_size, "skipped": skipped, "unknown": unknown}
        self._folder.finish_shard(number, plan.shards, record)


def prepare(
    source: Source,
    folder: Folder,
    *,
    asked: Mapping[str, Any],
    reencoding: Reencoding,
    shards: int | None = None,
    shard_mib: int = 256,
    limit: int | None = None,
    drop: Sequence[str] = (),
    workers: int = 1,
    note: Callable[[str], None] = print,
) -> Summary:
    """Writes ``source`` as one split of the data set in ``folder``, or what is still missing of it.

    Args:
      source: pickled once for each worker.
      folder: where to.
      asked: what identifies the source, for people: a split is only gone on with by the same.
      reencoding: what becomes of pictures.
      shards: how many; if left out, as many as give files of about ``shard_mib``.
      shard_mib: the size of a file.
      limit: only so many examples, the first ones.
      drop: fields that are not stored.
      workers: processes; 1 writes in this one.
      note: hears what is worth a line.
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
        fresh = planned(source, reencoding, asked, examples=examples, shards=shards, shard_mib=shard_mib, drop=drop)
        if plan is None:
            plan = dataclasses.replace(fresh, schema=common_schema(fresh, folder.other_plans(), folder.split))
            folder.begin(plan)
        else:
            check_same(plan, fresh, folder)
        missing = [number for number in range(plan.shards) if not _is_finished(folder, plan, number)]
        already = plan.shards - len(missing)
        if source.group > 1:
            note(f"the source's groups of {source.group} neighbors are stored as single examples")
        if already:
            note(f"{already} of {plan.shards} shards are there already")
        before = examples - sum(len(plan.range(number)) for number in missing)
        with Counter(examples, unit="examples", already=before) as progress:
            _write_all(Job(source, reencoding, plan, folder), missing, workers, lambda done: progress(before + done))
        folder.publish()
        return _summary(folder, plan, fresh.schema.left_out, time.monotonic() - started, already)


def text(summary: Summary) -> str:
    """A summary for people."""
    lines = [
        f"{summary.folder}: split {summary.split!r}, {summary.shards} shard(s), {time_left(summary.seconds)}",
        f"  written  {summary.examples:,} examples, {summary.captions:,} captions",
        f"  pictures {amount(summary.bytes_in)} in, files {amount(summary.bytes_out)} out",
    ]
    if summary.skipped:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(summary.skipped.items()))
        lines.append(f"  skipped  {sum(summary.skipped.values()):,} ({summary.skipped_share:.2%}): {reasons}")
        lines.append(f"           listed in {SKIPPED}")
    lines += [f"  no field {name!r}: {reason}" for name, reason in summary.left_out.items()]
    return "\n".join(lines)


def _is_finished(folder: Folder, plan: Plan, number: int) -> bool:
    record, path = folder.record(number), folder.shard(number, plan.shards)
    return record is not None and path.is_file() and path.stat().st_size == record["bytes_out"]


def _summary(folder: Folder, plan: Plan, left_out: Mapping[str, str], seconds: float, already: int) -> Summary:
    records = [record for number in range(plan.shards) if (record := folder.record(number)) is not None]
    skipped = collections.Counter(reason for _, reason, _ in plan.skipped)
    unknown: collections.Counter[str] = collections.Counter()
    for record in records:
        skipped.update(reason for _, reason, _ in record["skipped"])
        unknown.update(record["unknown"])
    late = {name: f"in {count:,} examples, but none of those that were looked at" for name, count in unknown.items()}
    totals = {key: sum(r[key] for r in records) for key in ("examples", "captions", "bytes_in", "bytes_out")}
    return Summary(
        folder=str(folder.path), split=folder.split, shards=plan.shards, **totals, skipped=dict(skipped),
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
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(job, counter)) as pool:
        waiting = {pool.submit(_write, number) for number in numbers}
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                progress(counter.value)
        except BaseException as error:
            counter.value = _STOP
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise ConfigError(
                    f"--workers={workers}: one was killed, perhaps for want of memory; the same command goes on from "
                    "the finished shards, or use fewer"
                ) from None
            raise


_worker: tuple[Job, Any]


def _begin(job: Job, counter: Any) -> None:
    """Makes this process a worker, which ends with the process that it works for, however that one ends."""
    global _worker
    _worker = (job, counter)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; who began this ends it
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
