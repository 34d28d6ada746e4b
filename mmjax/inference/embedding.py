"""Embeds a source shard by shard: pictures are read ahead in threads while the devices work on earlier ones."""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import pyarrow as pa

from mmjax.core.config import ConfigError
from mmjax.data.sample import Example, Unreadable
from mmjax.data.source import Source
from mmjax.inference.model import Model
from mmjax.inference.shards import UNREADABLE

Kind = Literal["images", "texts"]
_READ_AHEAD = 3  # batches that are read while the devices work
_IN_FLIGHT = 2  # batches on the devices


class ShardEmbeddings(NamedTuple):
    """A range of a source's examples, without the unreadable ones."""

    indices: list[int]
    ids: list[int]
    keys: list[str]
    captions: list[list[str]]
    images: Any  # f32[n, E], or what else was made of them; None: nothing
    texts: np.ndarray | None  # f32[captions, E], one after another
    unreadable: list[Unreadable]


class Embedding:
    """Both towers over the examples of a source.

    Every batch has the model's largest size, and batches do not cross shards: embeddings do not depend on which process
    makes a shard, or when.

    Args:
        model: What embeds.
        source: The examples as the source gives them; pictures are prepared as evaluation prepares them.
        kinds: What is embedded.
        threads: That read pictures; None: one a core.
        run_images: What is made of a batch of prepared pictures, of which the first has this index in the source: a
            tree of arrays [size, …]; None: the embeddings.
    """

    def __init__(
        self,
        model: Model,
        source: Source,
        *,
        kinds: Sequence[Kind],
        threads: int | None = None,
        run_images: Callable[[Any, int], Any] | None = None,
    ):
        self._model, self._kinds, self._run_images = model, kinds, run_images
        # Captions alone need no decoded picture.
        self._source = model.view(source) if "images" in kinds else source
        self._threads = threads or _cores()
        self._shape: tuple[int, ...] | None = None  # of every picture
        if "images" in kinds:
            first = self._source.first_readable()
            if model.modality not in first:
                raise ConfigError(f"the examples have no {model.modality!r}, which the model takes: {', '.join(first)}")
            self._shape = first[model.modality].shape

    def run(self, indices: Sequence[int], *, progress: Callable[[int], None] = lambda done: None) -> ShardEmbeddings:
        """The embeddings of the examples at ``indices``; calls ``progress`` with numbers of examples done."""
        size = self._model.batch_sizes[-1]
        batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        examples: list[tuple[int, Example]] = []
        unreadable: list[Unreadable] = []

        def image_batches() -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, int]]:
            with ThreadPoolExecutor(self._threads) as pool:
                for batch, results in _read_ahead(pool, batches, self._read):
                    readable = []
                    for index, result in zip(batch, results, strict=True):
                        if isinstance(result, Unreadable):
                            unreadable.append(result)
                        else:
                            readable.append(result)
                            examples.append((index, _without_pictures(result)))
                    progress(len(batch))
                    if readable and "images" in self._kinds:
                        yield self._stack(readable, size), np.arange(len(readable)), batch[0]

        run_images = self._run_images or (lambda batch, first: self._model.embed_batch("visual", batch))
        images = self._run_batches(run_images, image_batches())
        captions = [[text for text in example["captions"] if text] for _, example in examples]
        texts = None
        if "texts" in self._kinds:
            batches_of_texts = self._text_batches([text for each in captions for text in each], size)
            texts = self._run_batches(lambda batch, first: self._model.embed_batch("text", batch), batches_of_texts)
        return ShardEmbeddings(
            indices=[index for index, _ in examples],
            ids=[int(example["id"]) for _, example in examples],
            keys=[name_of(example, index) for index, example in examples],
            captions=captions,
            images=images if "images" in self._kinds else None,
            texts=texts,
            unreadable=unreadable,
        )

    def _read(self, index: int) -> Example | Unreadable:
        try:
            example = self._source.read(index)
        except Unreadable as error:
            return error
        name = self._model.modality
        if self._shape is not None and (shape := getattr(example.get(name), "shape", None)) != self._shape:
            detail = f"{name!r} has the shape {shape}, the first one {self._shape}"
            return Unreadable("bad row", detail, key=name_of(example, index))
        return example

    def _stack(self, examples: Sequence[Example], size: int) -> dict[str, np.ndarray]:
        """Pictures [size, H, W, C]; the last one fills what is left, because a tower may not handle zeros."""
        name = self._model.modality
        pictures = [example[name] for example in examples]
        return {name: np.stack(pictures + pictures[-1:] * (size - len(pictures)))}

    def _text_batches(self, texts: Sequence[str], size: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        if not texts:
            return
        tokens = self._model.tokenize(texts)
        for start in range(0, len(tokens), size):
            rows = np.arange(start, min(start + size, len(tokens)))
            yield tokens[np.minimum(np.arange(start, start + size), len(tokens) - 1)], rows - start, start

    def _run_batches(self, run: Callable[[Any, int], Any], batches: Iterator[tuple[Any, np.ndarray, int]]) -> Any:
        """What ``run`` makes of each batch and its first index, without what fills batches up; one after another."""
        pending: collections.deque[tuple[Any, np.ndarray]] = collections.deque()
        done: list[Any] = []

        def finish() -> None:
            made, rows = pending.popleft()
            done.append(jax.tree.map(lambda x: np.asarray(x)[rows], made))

        for batch, rows, first in batches:
            pending.append((run(batch, first), rows))
            if len(pending) > _IN_FLIGHT:
                finish()
        while pending:
            finish()
        if not done:
            return np.zeros((0, self._model.config.embed_dim), np.float32)
        return jax.tree.map(lambda *pieces: np.concatenate(pieces), *done)


def name_of(example: Mapping[str, Any], index: int) -> str:
    """What names an example for people and files: its key, or else its index in the source."""
    return _text(str(example.get("key", index)))


def embedding_table(
    kind: Kind, shard: ShardEmbeddings, *, dtype: str, with_embeddings: bool
) -> tuple[pa.Table, np.ndarray]:
    """One kind of a shard as a table, and its embeddings [n, E].

    The table of images has the columns ``index`` (in the source), ``id``, ``key`` and ``captions``, that of texts
    ``caption`` and its ``number`` in place of the last; and ``embedding``, unless that is stored apart.
    """
    columns: dict[str, pa.Array]
    if kind == "images":
        assert shard.images is not None
        embeddings, rows = shard.images, np.arange(len(shard.indices))
        columns = {"captions": pa.array([[_text(c) for c in each] for each in shard.captions], pa.list_(pa.string()))}
    else:
        assert shard.texts is not None
        counts = [len(each) for each in shard.captions]
        embeddings, rows = shard.texts, np.repeat(np.arange(len(counts)), counts)
        columns = {
            "number": pa.array([number for each in counts for number in range(each)], pa.int32()),
            "caption": pa.array([_text(caption) for each in shard.captions for caption in each], pa.string()),
        }
    embeddings = embeddings.astype(dtype)
    columns = {
        "index": pa.array(np.asarray(shard.indices, np.int64)[rows]),
        "id": pa.array(np.asarray(shard.ids, np.int64)[rows]),
        "key": pa.array([shard.keys[row] for row in rows.tolist()], pa.string()),
        **columns,
    }
    if with_embeddings:
        flat = pa.array(embeddings.reshape(-1))
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    return pa.table(columns).replace_schema_metadata({UNREADABLE: unreadable_json(shard.unreadable)}), embeddings


def caption_table(shard: ShardEmbeddings, decode: Callable[[np.ndarray], list[list[str]]]) -> pa.Table:
    """A row for each caption: the columns ``index``, ``id``, ``key``, ``number``, ``caption`` and ``log_probability``.

    ``shard.images`` are here what a ``Captioner`` returns, and ``decode`` its method.
    """
    texts: list[list[str]] = []
    log_p = np.zeros((0, 1), np.float32)
    if shard.indices:
        tokens, log_p = shard.images
        texts = decode(tokens)
    rows = np.repeat(np.arange(len(shard.indices)), log_p.shape[1])
    columns = {
        "index": pa.array(np.asarray(shard.indices, np.int64)[rows]),
        "id": pa.array(np.asarray(shard.ids, np.int64)[rows]),
        "key": pa.array([shard.keys[row] for row in rows.tolist()], pa.string()),
        "number": pa.array(np.tile(np.arange(log_p.shape[1], dtype=np.int32), len(texts))),
        "caption": pa.array([text for each in texts for text in each], pa.string()),
        "log_probability": pa.array(log_p.reshape(-1)),
    }
    return pa.table(columns).replace_schema_metadata({UNREADABLE: unreadable_json(shard.unreadable)})


def unreadable_json(unreadable: Sequence[Unreadable]) -> bytes:
    """The entries of a table's metadata."""
    entries = [[error.key, error.reason, error.detail] for error in unreadable]
    return json.dumps(entries, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _read_ahead(
    pool: ThreadPoolExecutor, batches: Sequence[Sequence[int]], read: Callable[[int], Any]
) -> Iterator[tuple[Sequence[int], list[Any]]]:
    """Each batch with what ``read`` returns for its indices; the next few batches are being read meanwhile."""
    pending: collections.deque[tuple[Sequence[int], list[Future[Any]]]] = collections.deque()
    for batch in batches:
        pending.append((batch, [pool.submit(read, index) for index in batch]))
        if len(pending) > _READ_AHEAD:
            first, futures = pending.popleft()
            yield first, [future.result() for future in futures]
    for first, futures in pending:
        yield first, [future.result() for future in futures]


def _without_pictures(example: Example) -> Example:
    return {name: example[name] for name in ("id", "key", "captions") if name in example}


def _text(value: str) -> str:
    """``value`` with what UTF-8 cannot hold (of file names) as escapes."""
    return value.encode("utf-8", "backslashreplace").decode()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
