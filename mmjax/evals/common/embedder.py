"""Embeds the images and texts of a split, in batches of one shape; equal texts are embedded once."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.core.config import ConfigError
from mmjax.core.row_sharding import num_shards
from mmjax.data.sample import Unreadable
from mmjax.data.source import Source
from mmjax.evals.captions.writer import CaptionWriter, MakeWriter
from mmjax.evals.common.host_batches import (
    ALL_UNREADABLE,
    Description,
    Embedded,
    HostBatch,
    describe,
    first_pictures,
    gather_examples,
    stack_modalities,
    to_global,
)
from mmjax.evals.common.pair_scores import Matcher, PairScorer
from mmjax.evals.labels.reader import LabelReader

IN_FLIGHT = 16
"""Batches that may wait on the device: enough to keep it busy, few enough to fit its memory."""


class Embedder:
    """Both towers of a model, compiled once for a whole run; ``bind`` sets the parameters.

    In a run of several processes every process must make the same calls. Each reads the examples of its own rows, and
    all of them then have all embeddings and items, the same as one process with as many devices.

    Args:
        encode_images: A pure function ``(params, {modality: u8[B, H, W, C]}) -> [B, E]``; rows are normalized here.
        encode_texts: A pure function ``(params, i32[B, L]) -> [B, E]``.
        tokenizer: Texts to i32[n, L]; one with ``is_truncated`` lets evaluators report what it cuts.
        batch_size: Rows of a global batch.
        row_sharding: Splits a batch over a mesh; embeddings are replicated. None: one device.
        modalities: The keys of an example that go to the image tower.
        num_threads: Threads that read examples; 0: none besides the caller.
        matcher: Scores pairs as wholes, if the model can.
        make_writer: Makes what writes captions, if the model can.
        takes_some: Whether the image tower can do with some of the modalities.
        label_reader: Reads the labels of sequences, if the model can.
    """

    def __init__(
        self,
        encode_images: Callable[[Any, dict[str, jax.Array]], jax.Array],
        encode_texts: Callable[[Any, jax.Array], jax.Array],
        *,
        tokenizer: Callable[[Sequence[str]], np.ndarray],
        batch_size: int,
        row_sharding: NamedSharding | None = None,
        modalities: Sequence[str] = ("image",),
        num_threads: int = 0,
        matcher: Matcher | None = None,
        make_writer: MakeWriter | None = None,
        takes_some: bool = False,
        label_reader: LabelReader | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if not modalities:
            raise ValueError("modalities=(): name at least one key of the examples, such as 'image'")
        if row_sharding is not None:
            shards = num_shards(row_sharding)
            if batch_size % shards:
                raise ValueError(
                    f"batch_size={batch_size}: does not divide over {shards} shards; "
                    f"use {-(-batch_size // shards) * shards}"
                )
        self.tokenizer = tokenizer
        self.batch_size, self.row_sharding = batch_size, row_sharding
        self.modalities = tuple(modalities)
        self.num_threads = num_threads
        self.host_batch = HostBatch(batch_size, row_sharding)
        self.pair_scorer = matcher and PairScorer(matcher, batch_size=batch_size, row_sharding=row_sharding)
        self.answers = matcher.answers if matcher else ()
        self._make_writer, self._writers = make_writer, dict[str, CaptionWriter]()
        self._abilities = {"caption": bool(make_writer), "some_modalities": takes_some, "labels": bool(label_reader)}
        self._shardings: dict[str, Any] = {}
        if row_sharding is not None:
            self._shardings = {
                "in_shardings": (None, row_sharding),
                "out_shardings": NamedSharding(row_sharding.mesh, PartitionSpec()),
            }
        self.embed_images = jax.jit(_with_unit_rows(encode_images, batch_size, "encode_images"), **self._shardings)
        self.embed_texts = jax.jit(_with_unit_rows(encode_texts, batch_size, "encode_texts"), **self._shardings)
        self.label_reader = label_reader and label_reader._replace(read=jax.jit(label_reader.read, **self._shardings))

    @property
    def heads(self) -> set[str]:
        """What the model can do beside embeddings, such as ``match``, ``caption``, ``some_modalities``, ``labels``."""
        own = {name for name, can in self._abilities.items() if can}
        return own if self.pair_scorer is None else own | set(self.pair_scorer.heads)

    def writer(self, **decoding: Any) -> CaptionWriter:
        """What writes captions, compiled once for the same options."""
        if self._make_writer is None:
            raise ConfigError("the model has no decoder, which captions need; set model.decoder, or measure others")
        key = repr(sorted(decoding.items()))
        if key not in self._writers:
            writer = self._make_writer(**decoding)
            self._writers[key] = writer._replace(write=jax.jit(writer.write, **self._shardings))
        return self._writers[key]

    def bind(self, params: Any) -> BoundEmbedder:
        """The embedder of one set of parameters, with its own caches."""
        return BoundEmbedder(self, params)


class BoundEmbedder:
    """Embeddings under one set of parameters: what evaluators call."""

    def __init__(self, embedder: Embedder, params: Any):
        self._embedder = embedder
        self._params = params
        self._splits: dict[Hashable, tuple[Source, Embedded]] = {}
        self._row_of_text: dict[str, int] = {}
        self._row_of_tokens: dict[bytes, int] = {}
        self._texts: np.ndarray | None = None  # f32[rows, E]
        self._means: dict[bytes, np.ndarray] = {}

    @property
    def row_sharding(self) -> NamedSharding | None:
        """How rows lie over the devices, for evaluators that compute there; None: one device."""
        return self._embedder.row_sharding

    @property
    def modalities(self) -> tuple[str, ...]:
        """The keys of an example that go to the image tower."""
        return self._embedder.modalities

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers that the model's head chooses from, in its order; empty if the model does not say."""
        return self._embedder.answers

    def images(self, examples: Source, *, key: Hashable = None) -> np.ndarray:
        """f32[n, E]: one unit row for each example."""
        return self.read(examples, key=key).images

    def read(self, examples: Source, *, key: Hashable = None, modalities: tuple[str, ...] | None = None) -> Embedded:
        """Embeddings and items in one pass over ``examples``; of some ``modalities``, where the image tower takes some.

        A second call with the same ``key`` (by default: the same object) returns the first result, so that evaluators
        of one split share the work.
        """
        name = (id(examples) if key is None else key, modalities or self.modalities)
        if name not in self._splits:
            if not len(examples):
                raise ValueError("there are no examples to embed")
            owned: list[tuple[int, Description]] = []
            images = self._run(self._embedder.embed_images, self._image_batches(examples, owned, modalities))
            indices, items, unreadable = gather_examples(owned)
            if not len(indices):
                raise ConfigError(ALL_UNREADABLE)
            # Keep the examples as well: an id is unique only while its object lives.
            self._splits[name] = (examples, Embedded(images[indices], items, indices, unreadable))
        return self._splits[name][1]

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """f32[n, E]: one unit row for each text. Texts with equal tokens share one row, so they tie exactly."""
        rows = self.text_rows(texts)
        assert self._texts is not None
        return self._texts[rows]

    def match(
        self, examples: Source, images: np.ndarray, texts: Sequence[str], numbers: np.ndarray, *, head: str = "match"
    ) -> np.ndarray:
        """f32[p]: how well image ``images[p]`` of the examples and text ``texts[numbers[p]]`` match as a whole.

        With ``head="answer"``, f32[p, answers]: the logits of a question's answers; with ``answer_pair``, those of a
        text about both pictures of an example.
        """
        scorer = self._embedder.pair_scorer
        assert scorer is not None  # who needs it says so (``Base.needs_head``)
        ids = self._embedder.tokenizer(texts)
        batches = self._image_batches(examples, [], scorer.modalities)
        return scorer(self._params, batches, images, ids, numbers, head=head)

    def captions(self, examples: Source, *, key: Hashable = None, **decoding: Any) -> list[str]:
        """A text for each example of ``read``, by the model's decoder; ``decoding`` says how words are chosen."""
        writer = self._embedder.writer(**decoding)
        rows = self.read(examples, key=key).indices
        return writer.decode(self._run(writer.write, self._image_batches(examples, []))[rows])

    @property
    def label_reader(self) -> LabelReader:
        """What reads the labels of sequences."""
        assert self._embedder.label_reader is not None  # who needs it says so (``Base.needs_head``)
        return self._embedder.label_reader

    def labels(self, examples: Source, *, key: Hashable = None) -> list[list[str]]:
        """The labels that the model recognizes in each example of ``read``."""
        rows = self.read(examples, key=key).indices
        return self.label_reader.decode(self._run(self.label_reader.read, self._image_batches(examples, []))[rows])

    def is_truncated(self, texts: Sequence[str]) -> np.ndarray | None:
        """bool[n]: which texts are cut at the context length; None if the tokenizer does not say."""
        is_truncated = getattr(self._embedder.tokenizer, "is_truncated", None)
        return None if is_truncated is None else is_truncated(texts)

    def text_rows(self, texts: Sequence[str]) -> np.ndarray:
        """i64[n]: numbers that are equal for texts with equal tokens; new texts are embedded."""
        if not len(texts):
            raise ValueError("there are no texts to embed")
        new = [text for text in dict.fromkeys(texts) if text not in self._row_of_text]
        if new:
            tokens = np.ascontiguousarray(self._embedder.tokenizer(new))
            unseen = []
            for text, row in zip(new, tokens, strict=True):
                content = row.tobytes()
                if content not in self._row_of_tokens:
                    self._row_of_tokens[content] = len(self._row_of_tokens)
                    unseen.append(row)
                self._row_of_text[text] = self._row_of_tokens[content]
            if unseen:
                rows = self._run(self._embedder.embed_texts, self._text_batches(np.stack(unseen)))[: len(unseen)]
                self._texts = rows if self._texts is None else np.concatenate([self._texts, rows])
        return np.array([self._row_of_text[text] for text in texts], np.int64)

    def text_means(self, groups: Sequence[Sequence[str]]) -> np.ndarray:
        """f32[len(groups), E]: unit rows of the mean over each group's texts of their unit rows.

        Sums are made on the device, and no row of a single text is kept: a thousand classes have 80,000 prompts. The
        result is kept.
        """
        key = hashlib.sha256(json.dumps(groups).encode()).digest()
        if key not in self._means:
            texts = [text for group in groups for text in group]
            numbers = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
            self._means[key] = np.asarray(jax.device_get(self._sum_texts(texts, numbers, len(groups))))
        sums = self._means[key]
        return sums / np.maximum(np.linalg.norm(sums, axis=-1, keepdims=True), 1e-12)

    def _sum_texts(self, texts: Sequence[str], numbers: np.ndarray, count: int) -> jax.Array:
        size, row_sharding = self._embedder.batch_size, self._embedder.row_sharding
        place = None if row_sharding is None else NamedSharding(row_sharding.mesh, PartitionSpec())
        total: jax.Array | None = None
        for number, start in enumerate(self._embedder.host_batch.starts(len(texts), "texts")):
            end = min(start + size, len(texts))
            # Padding repeats the last text, and belongs to a group that nobody asked for.
            rows = np.minimum(np.arange(start, start + size), len(texts) - 1)
            group = np.full(size, count, np.int32)
            group[: end - start] = numbers[start:end]
            tokens = self._embedder.tokenizer(texts[start:end])[rows[self._embedder.host_batch.rows] - start]
            z = self._embedder.embed_texts(self._params, self._embedder.host_batch.to_device(tokens))
            ids = jax.device_put(group) if place is None else to_global(group, place)
            total = _add_rows(z, ids, total, count=count)
            if number % IN_FLIGHT == 0:
                total.block_until_ready()
        assert total is not None
        return total

    def _image_batches(
        self, examples: Source, owned: list[tuple[int, Description]], modalities: Sequence[str] | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of each batch; appends the descriptions of those that it owns to ``owned``.

        ``modalities`` stand in place of those that embeddings are made of.

        An unreadable example keeps its row, so that no process needs to know what another one could read.
        """
        keys = modalities or self.modalities

        def read(index: int) -> tuple[dict[str, Any] | Unreadable, Description]:
            """An example or the error, and its description, made here because a digest takes time."""
            result: dict[str, Any] | Unreadable
            try:
                result = examples.read(index)
            except Unreadable as error:
                result = error
            return result, describe(result, keys)

        host_batch, threads = self._embedder.host_batch, self._embedder.num_threads
        filler: dict[str, np.ndarray] | None = None  # fills rows without a readable example
        with ThreadPoolExecutor(threads) if threads else contextlib.nullcontext() as pool:
            for start in self._embedder.host_batch.starts(len(examples), "images"):
                rows = start + host_batch.rows
                indices = rows[rows < len(examples)].tolist()
                pairs = list(map(read, indices) if pool is None else pool.map(read, indices))
                results = [result for result, _ in pairs]
                entries = zip(indices, pairs, host_batch.owned.tolist(), strict=False)  # the last batch may be short
                owned.extend((index, description) for index, (_, description), is_owned in entries if is_owned)
                readable = [i for i, result in enumerate(results) if not isinstance(result, Unreadable)]
                if readable:
                    chosen = [results[i] for i in readable]
                    stacked = stack_modalities(chosen, keys, [indices[i] for i in readable])
                    filler = {m: pictures[-1] for m, pictures in stacked.items()}
                elif filler is None and (filler := first_pictures(examples, keys)) is None:
                    raise ConfigError(ALL_UNREADABLE)
                if len(readable) == len(rows):
                    yield stacked
                    continue
                images = {m: np.repeat(picture[None], len(rows), axis=0) for m, picture in filler.items()}
                if readable:
                    for m, pictures in stacked.items():
                        images[m][readable] = pictures
                yield images

    def _text_batches(self, tokens: np.ndarray) -> Iterator[np.ndarray]:
        for start in self._embedder.host_batch.starts(len(tokens), "texts"):
            # Padding repeats the last row, because a tower may not handle a text of zeros.
            yield tokens[np.minimum(start + self._embedder.host_batch.rows, len(tokens) - 1)]

    def _run(self, function: Callable[..., jax.Array], batches: Iterable[Any]) -> np.ndarray:
        """f32[rows, E] of all batches, padding at the end included."""
        pending: collections.deque[jax.Array] = collections.deque()
        done: list[np.ndarray] = []
        for batch in batches:
            pending.append(function(self._params, jax.tree.map(self._embedder.host_batch.to_device, batch)))
            if len(pending) > IN_FLIGHT:
                done.append(np.asarray(jax.device_get(pending.popleft())))
        done.extend(np.asarray(jax.device_get(rows)) for rows in pending)
        return np.concatenate(done)


@functools.partial(jax.jit, static_argnames="count", donate_argnums=2)
def _add_rows(z: jax.Array, group: jax.Array, total: jax.Array | None, *, count: int) -> jax.Array:
    sums = jax.ops.segment_sum(z, group, num_segments=count + 1)[:count]
    return sums if total is None else total + sums


def _with_unit_rows(encode: Callable[[Any, Any], jax.Array], rows: int, name: str) -> Callable[[Any, Any], jax.Array]:
    def embed(params: Any, batch: Any) -> jax.Array:
        z = encode(params, batch)
        if z.ndim != 2 or z.shape[0] != rows:
            raise ValueError(f"{name} returned the shape {z.shape} for {rows} rows; evaluation needs one row for each")
        z = z.astype(jnp.float32)
        # A zero vector stays zero instead of becoming NaN: it ties with everything, so it scores nothing.
        return z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12)

    return embed
