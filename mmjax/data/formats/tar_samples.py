"""Samples of WebDataset tar shards: runs of members with one key.

The key is a member's path up to the first dot of its base name; the rest, in lower case, is its extension. Members
without either belong to no sample. The cached table of a shard has all members, so that other options need no new one.
In memory a sample takes 8 bytes a member and its key's length + 4: 29 for an image, a text and a key of nine digits.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import posixpath
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.formats import tar_headers
from mmjax.data.storage import filesystem, index_cache

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]

LOCAL_THREADS, REMOTE_THREADS = 4, 16
USABLE, DUPLICATE, TRUNCATED = (
    0,
    1,
    2,
)  # status of a sample
_LOG_SECONDS = 5.0  # between messages about progress
_LARGEST = (1 << 32) - 1  # bytes of a member; stands for all larger sizes, which nobody reads
_GAP = 1 << 16  # bytes between members that are read rather than skipped
_SMALL = 1 << 16  # bytes that are copied faster than read separately


class Shard(NamedTuple):
    """The samples of one archive: all, or those that ``choose`` kept."""

    keys: np.ndarray  # u8[…], one after another
    key_ends: np.ndarray  # u32[n], in ``keys``
    members: dict[
        str, tuple[np.ndarray, np.ndarray]
    ]  # name -> block of its first byte u32[n] (0: absent), length u32[n]

    def __len__(self) -> int:
        return len(self.key_ends)

    def key(self, place: int) -> str:
        """A sample's key as text."""
        start = int(self.key_ends[place - 1]) if place else 0
        return bytes(self.keys[start : int(self.key_ends[place])]).decode("utf-8", "backslashreplace")

    def choose(self, wanted: np.ndarray) -> Shard:
        """The samples for which ``wanted`` (bool[n]) is set."""
        if wanted.all():
            return self
        lengths = np.diff(self.key_ends, prepend=np.uint32(0))
        ends = np.cumsum(lengths[wanted], dtype=np.uint32)
        members = {name: (block[wanted], size[wanted]) for name, (block, size) in self.members.items()}
        return Shard(self.keys[np.repeat(wanted, lengths)], ends, members)


class ScanResult(NamedTuple):
    """A shard, the status of its samples, and why it ends early."""

    shard: Shard
    status: np.ndarray  # u8[n]: USABLE, DUPLICATE (its key occurred before) or TRUNCATED
    truncation: str


def scan_shards(paths: Sequence[str], members: Mapping[str, Sequence[str]]) -> Iterator[ScanResult]:
    """Each shard's samples, in order; shards that the cache does not have are read, and progress is logged.

    Args:
      paths: of the shards.
      members: name -> extensions in order of preference; of each sample the first one that it has.
    """
    stamps = filesystem.stamps(paths)

    def scan(path: str, stamp: str) -> ScanResult:
        return _select(index_cache.load_or_build("tar samples", [path], lambda: _table(path), stamps=[stamp]), members)

    begin = last = time.monotonic()
    with ThreadPoolExecutor(threads(paths)) as pool:
        try:
            for done, result in enumerate(pool.map(scan, paths, stamps), 1):
                if time.monotonic() - last > _LOG_SECONDS:
                    last = time.monotonic()
                    logger.info(f"indexed {done} of {len(paths)} shards in {last - begin:.0f} s")
                yield result
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def threads(paths: Sequence[str]) -> int:
    """Number of reading threads: few for local files, where parsing takes most of the time."""
    return REMOTE_THREADS if any(map(filesystem.is_url, paths)) else LOCAL_THREADS


class Samples:
    """The samples of many shards, with one numbering."""

    def __init__(self, paths: Sequence[str], shards: Sequence[Shard], names: Sequence[str], *, max_mib: int):
        self._paths = list(paths)
        self._max_mib = max_mib
        self._keys = [(shard.keys, shard.key_ends) for shard in shards]
        self._starts = np.cumsum([0, *map(len, shards)])
        self._members = {
            name: (
                np.concatenate([shard.members[name][0] for shard in shards]),
                np.concatenate([shard.members[name][1] for shard in shards]),
            )
            for name in names
            if any(shard.members[name][0].any() for shard in shards)
        }

    def __len__(self) -> int:
        return int(self._starts[-1])

    def key(self, place: int) -> str:
        """The shard's name and the sample's key in it."""
        shard = self._shard(place)
        key = Shard(*self._keys[shard], {}).key(place - int(self._starts[shard]))
        return f"{posixpath.basename(self._paths[shard])}/{key}"

    def has(self, name: str, place: int) -> bool:
        """Whether a sample has the member."""
        return name in self._members and bool(self._members[name][0][place])

    def read(self, place: int, names: Sequence[str]) -> dict[str, bytes]:
        """The bytes of those of these members that a sample has."""
        path = self._paths[self._shard(place)]
        spans = []
        for name in names:
            if not self.has(name, place):
                continue
            block, size = (int(column[place]) for column in self._members[name])
            filesystem.check_size(size, self._max_mib)
            spans.append((block * tar_headers.BLOCK, size, name))
        # Of a local file, another read is cheaper than copying a large image out of a joint one.
        longest = sys.maxsize if filesystem.is_url(path) else _SMALL
        return dict(itertools.chain.from_iterable(_joint(path, run) for run in _runs(sorted(spans), longest)))

    def digest(self) -> str:
        """A hash of the keys of all samples."""
        digest = hashlib.sha256(self._starts.tobytes())
        for keys, ends in self._keys:
            digest.update(ends.tobytes())
            digest.update(keys.tobytes())
        return digest.hexdigest()[:16]

    def _shard(self, place: int) -> int:
        return int(np.searchsorted(self._starts, place, side="right")) - 1


def _runs(spans: list[tuple[int, int, str]], longest: int) -> Iterator[list[tuple[int, int, str]]]:
    """Groups sorted spans into runs that are read at once: without large gaps, and at most ``longest`` bytes."""
    run: list[tuple[int, int, str]] = []
    for span in spans:
        if run and (span[0] - sum(run[-1][:2]) > _GAP or sum(span[:2]) - run[0][0] > longest):
            yield run
            run = []
        run.append(span)
    if run:
        yield run


def _joint(path: str, run: list[tuple[int, int, str]]) -> Iterator[tuple[str, bytes]]:
    start = run[0][0]
    if len(run) == 1:
        return iter([(run[0][2], filesystem.read_range(path, start, run[0][1]))])
    data = filesystem.read_range(path, start, max(begin + size for begin, size, _ in run) - start)
    return ((name, data[begin - start :][:size]) for begin, size, name in run)


def _table(path: str) -> Arrays:
    """All samples of a shard with all their members."""
    archive = tar_headers.members(path)
    keys: list[bytes] = []
    first: list[int] = []
    status: list[int] = []
    extensions: dict[bytes, int] = {}
    kinds: list[int] = []
    blocks: list[int] = []
    sizes: list[int] = []
    known: set[bytes] = set()
    seen: set[int] = set()
    for name, offset, size in zip(archive.names, archive.offsets, archive.sizes, strict=True):
        key, extension = _parse(name)
        if not key:
            continue
        kind = extensions.setdefault(extension, len(extensions))
        # A second member of one extension begins another sample of the same key.
        if not keys or key != keys[-1] or kind in seen:
            keys.append(key)
            first.append(len(kinds))
            status.append(DUPLICATE if key in known else USABLE)
            known.add(key)
            seen = set()
        seen.add(kind)
        kinds.append(kind)
        blocks.append(offset // tar_headers.BLOCK)
        sizes.append(min(size, _LARGEST))
    if keys and archive.truncated_name and _parse(archive.truncated_name)[0] == keys[-1]:
        status[-1] = TRUNCATED
    if blocks and blocks[-1] > _LARGEST:
        raise ConfigError(f"path={path!r}: shards of 2 TiB and more are not supported; split it")
    return {
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "key_ends": np.cumsum([len(key) for key in keys], dtype=np.uint32),
        "first": np.array(first, np.int64),
        "status": np.array(status, np.uint8),
        "kind": np.array(kinds, np.uint32),
        "block": np.array(blocks, np.uint32),
        "size": np.array(sizes, np.uint32),
        "extensions": np.frombuffer(b"\0".join(extensions), np.uint8),
        "truncation": np.array(archive.truncation),
    }


def _parse(name: bytes) -> tuple[bytes, bytes]:
    """Key and extension of a member's name; both empty if it belongs to no sample."""
    folder, slash, base = name.rpartition(b"/")
    stem, dot, extension = base.partition(b".")
    if not stem or not dot or b"\0" in name:
        return b"", b""
    return folder + slash + stem, extension.lower()


def _select(table: Arrays, members: Mapping[str, Sequence[str]]) -> ScanResult:
    extensions = {name: code for code, name in enumerate(bytes(table["extensions"]).split(b"\0"))}
    first, count = table["first"], len(table["kind"])
    columns = {}
    for name, wanted in members.items():
        rank = np.full(len(extensions), len(wanted), np.int64)
        for place, extension in reversed(list(enumerate(wanted))):
            if (code := extensions.get(extension.lower().encode())) is not None:
                rank[code] = place
        block, size = np.zeros(len(first), np.uint32), np.zeros(len(first), np.uint32)
        if count:
            best = np.minimum.reduceat(rank[table["kind"]] * count + np.arange(count), first)
            there = best // count < len(wanted)
            block[there] = table["block"][best[there] % count]
            size[there] = table["size"][best[there] % count]
        columns[name] = (block, size)
    return ScanResult(Shard(table["keys"], table["key_ends"], columns), table["status"], str(table["truncation"]))
