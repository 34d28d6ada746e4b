"""Images and texts to unit vectors, in batches of one static shape, each distinct thing once."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.core.config import ConfigError
from mmjax.core.row_sharding import num_shards
from mmjax.data.sample import Unreadable
from mmjax.evals.common.host_batches import Share, told_to_all

# Batches that may wait on the device for their turn: enough that it never idles, few enough that the pixels of
# a large split do not all lie in its memory.
IN_FLIGHT = 16


class Split(NamedTuple):
    """One opened split, and the name under which evaluators of the same split share its embeddings."""

    source: Any  # see mmjax.data.sources
    key: Hashable


def open_split(open_source: Callable[..., Any], split: str, options: dict[str, Any] | None) -> Split:
    """``open_source(split, **options)``; raises when there is nothing in it to evaluate."""
    options = options or {}
    source = open_source(split, **options)
    if not len(source):
        raise ConfigError(f"split={split!r}: the source has no examples there; choose another split")
    return Split(source, (open_source, split, repr(sorted(options.items()))))


class Embedded(NamedTuple):
    """One split, read once: the vectors of its images and everything else that its examples say."""

    images: np.ndarray  # f32[n, E], unit rows
    items: list[dict[str, Any]]  # the examples without their pixels, as JSON would say them
    rows: np.ndarray  # i64[n]: where in the split each of them is
    skipped: list[Unreadable]  # the examples that could not be read, and are in neither


class Embedder:
    """A model's two towers, compiled once for a whole run; ``bind`` gives it the parameters of one checkpoint.

    ``encode_images(params, {modality: u8[B, H, W, C]}) -> [B, E]`` and ``encode_texts(params, i32[B, L]) -> [B, E]``
    are pure functions before normalisation, which happens here, in float32. With ``sharding`` (of a batch's rows)
    the batches are split over its mesh and the embeddings come back whole on every device. In a run of several
    processes every process must make the same calls; each reads the examples of its own rows, and then holds all
    embeddings and items, the same as one process with as many devices.
    """

    def __init__(
        self,
        encode_images: Callable[[Any, dict[str, jax.Array]], jax.Array],
        encode_texts: Callable[[Any, jax.Array], jax.Array],
        *,
        tokenizer: Callable[[Sequence[str]], np.ndarray],
        batch_size: int,
        sharding: NamedSharding | None = None,
        modalities: Sequence[str] = ("image",),
        num_threads: int = 0,
    ):
        """``modalities`` are the example keys that go to the image tower; ``num_threads`` decode examples (0: none)."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if not modalities:
            raise ValueError("modalities=(): name at least one key of the examples, such as 'image'")
        if sharding is not None:
            shards = num_shards(sharding)
            if batch_size % shards:
                raise ValueError(
                    f"batch_size={batch_size}: does not divide over {shards} shards; "
                    f"use {-(-batch_size // shards) * shards}"
                )
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.sharding = sharding
        self.modalities = tuple(modalities)
        self.num_threads = num_threads
        self.share = Share(batch_size, sharding)
        shardings: dict[str, Any] = {}
        if sharding is not None:
            shardings = {
                "in_shardings": (None, sharding),
                "out_shardings": NamedSharding(sharding.mesh, PartitionSpec()),
            }
        self.embed_images = jax.jit(_normalised(encode_images, batch_size, "encode_images"), **shardings)
        self.embed_texts = jax.jit(_normalised(encode_texts, batch_size, "encode_texts"), **shardings)

    def bind(self, params: Any) -> BoundEmbedder:
        """The embedder of one checkpoint, with caches that live as long as it does: one for each evaluation."""
        return BoundEmbedder(self, params)


class BoundEmbedder:
    """What evaluators call: embeddings under one set of parameters."""

    def __init__(self, embedder: Embedder, params: Any):
        self._embedder = embedder
        self._params = params
        self._splits: dict[Hashable, tuple[Sequence[dict[str, Any]], Embedded]] = {}
        self._row_of_text: dict[str, int] = {}
        self._row_of_tokens: dict[bytes, int] = {}
        self._texts: np.ndarray | None = None  # f32[rows, E]

    @property
    def sharding(self) -> NamedSharding | None:
        """How a batch's rows lie over the devices, for evaluators that compute there; None on one device."""
        return self._embedder.sharding

    @property
    def modalities(self) -> tuple[str, ...]:
        """The keys of an example that the image tower sees."""
        return self._embedder.modalities

    def images(self, examples: Sequence[dict[str, Any]], *, key: Hashable = None) -> np.ndarray:
        """f32[n, E]: one unit row for each example."""
        return self.read(examples, key=key).images

    def read(self, examples: Sequence[dict[str, Any]], *, key: Hashable = None) -> Embedded:
        """Embeddings and items in one pass over ``examples``.

        A second call with the same ``key`` (by default: the same object) gives the first one's result, so that
        several evaluators of one split share the work.
        """
        name = id(examples) if key is None else key
        if name not in self._splits:
            if not len(examples):
                raise ValueError("there are no examples to embed")
            found: list[tuple[int, dict[str, Any] | Unreadable]] = []
            images = self._run(self._embedder.embed_images, self._image_batches(examples, found))
            rows, items, skipped = told_to_all(found)
            if not len(rows):
                raise _unreadable()
            # The examples are kept too: an id is only unique while its object lives.
            self._splits[name] = (examples, Embedded(images[rows], items, rows, skipped))
        return self._splits[name][1]

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """f32[n, E]: one unit row for each text. Texts of equal tokens share one row, so they tie exactly."""
        if not len(texts):
            raise ValueError("there are no texts to embed")
        new = [text for text in dict.fromkeys(texts) if text not in self._row_of_text]
        if new:
            tokens = np.ascontiguousarray(self._embedder.tokenizer(new))
            fresh = []
            for text, row in zip(new, tokens, strict=True):
                content = row.tobytes()
                if content not in self._row_of_tokens:
                    self._row_of_tokens[content] = len(self._row_of_tokens)
                    fresh.append(row)
                self._row_of_text[text] = self._row_of_tokens[content]
            if fresh:
                rows = self._run(self._embedder.embed_texts, self._text_batches(np.stack(fresh)))[: len(fresh)]
                self._texts = rows if self._texts is None else np.concatenate([self._texts, rows])
        assert self._texts is not None
        return self._texts[[self._row_of_text[text] for text in texts]]

    def _image_batches(
        self, examples: Sequence[dict[str, Any]], found: list[tuple[int, dict[str, Any] | Unreadable]]
    ) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of each batch; what they say goes to ``found``.

        Every example has its place, readable or not, so that no process needs to know what another one could read.
        """

        def read_or_not(row: int) -> dict[str, Any] | Unreadable:
            try:
                return examples[row]
            except Unreadable as error:
                return error

        size, share, threads = self._embedder.batch_size, self._embedder.share, self._embedder.num_threads
        stand_in: dict[str, np.ndarray] | None = None
        with ThreadPoolExecutor(threads) if threads else contextlib.nullcontext() as pool:
            for start in range(0, len(examples), size):
                rows = (start + share.held)[start + share.held < len(examples)].tolist()
                results = list(map(read_or_not, rows) if pool is None else pool.map(read_or_not, rows))
                found.extend(
                    entry for entry, told in zip(zip(rows, results, strict=True), share.told, strict=False) if told
                )
                places = [at for at, result in enumerate(results) if not isinstance(result, Unreadable)]
                if places:
                    stacked = self._stacked([results[at] for at in places], [rows[at] for at in places])
                    stand_in = {m: pictures[-1] for m, pictures in stacked.items()}
                elif stand_in is None:
                    stand_in = self._stand_in(examples)
                if len(places) == len(share.held):
                    yield stacked
                    continue
                images = {m: np.repeat(picture[None], len(share.held), axis=0) for m, picture in stand_in.items()}
                if places:
                    for m, pictures in stacked.items():
                        images[m][places] = pictures
                yield images

    def _stacked(self, examples: Sequence[Any], rows: Sequence[int]) -> dict[str, np.ndarray]:
        return {m: _stack(examples, m, rows) for m in self.modalities}

    def _stand_in(self, examples: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
        """The pictures of any example, for rows of a process that has none itself."""
        for row in range(len(examples)):
            with contextlib.suppress(Unreadable):
                return {m: pictures[0] for m, pictures in self._stacked([examples[row]], [row]).items()}
        raise _unreadable()

    def _text_batches(self, tokens: np.ndarray) -> Iterator[np.ndarray]:
        share = self._embedder.share
        for start in range(0, len(tokens), self._embedder.batch_size):
            # Padding repeats a real row: no tower has seen an all-zero text, and none should have to survive one.
            yield tokens[np.minimum(start + share.held, len(tokens) - 1)]

    def _run(self, function: Callable[..., jax.Array], batches: Iterable[Any]) -> np.ndarray:
        """f32[rows, E] of all batches; what they are padded with is the last ones'."""
        pending: collections.deque[jax.Array] = collections.deque()
        done: list[np.ndarray] = []
        for batch in batches:
            pending.append(function(self._params, jax.tree.map(self._embedder.share.place, batch)))
            if len(pending) > IN_FLIGHT:
                done.append(np.asarray(jax.device_get(pending.popleft())))
        done.extend(np.asarray(jax.device_get(rows)) for rows in pending)
        return np.concatenate(done)


def place(rows: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """The same host array of every process as one global array.

    By explicit transfers, a shard at a time: the loop disallows implicit ones, and no process can fill the devices
    of another.
    """
    shards = sharding.addressable_devices_indices_map(rows.shape)
    return jax.make_array_from_single_device_arrays(
        rows.shape, sharding, [jax.device_put(rows[index], device) for device, index in shards.items()]
    )


def _normalised(encode: Callable[[Any, Any], jax.Array], rows: int, name: str) -> Callable[[Any, Any], jax.Array]:
    def embed(params: Any, batch: Any) -> jax.Array:
        z = encode(params, batch)
        if z.ndim != 2 or z.shape[0] != rows:
            raise ValueError(f"{name} returned the shape {z.shape} for {rows} rows; evaluation needs one row for each")
        z = z.astype(jnp.float32)
        # A zero vector stays zero (it ties with everything, so it scores nothing) instead of becoming NaN.
        return z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12)

    return embed


def _stack(examples: Sequence[dict[str, Any]], modality: str, rows: Sequence[int]) -> np.ndarray:
    for row, example in zip(rows, examples, strict=True):
        if modality not in example:
            raise ValueError(
                f"example {row} has no {modality!r}; it has {', '.join(map(repr, example))}: "
                "change the evaluation's modalities or the source"
            )
        shape, first = example[modality].shape, examples[0][modality].shape
        if shape != first:
            raise ValueError(
                f"example {row}: {modality!r} has the shape {shape}, others of its batch {first}; "
                "let the source resize images to one size"
            )
    return np.stack([example[modality] for example in examples])


def _unreadable() -> ConfigError:
    return ConfigError("none of the split's examples can be read; check the source with `mmjax data inspect`")
