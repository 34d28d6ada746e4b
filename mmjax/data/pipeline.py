"""Batches as a pure function of (seed, step).

Which examples, in which order, with which of their captions, changed in which way: all of it is arithmetic on the
numbers of the rows, done for the global batch before a process takes its share. So nothing here depends on how many
processes, workers or threads there are, a run goes on at step k without reading what came before, and there is no
iterator state to save.

How rows are composed. With N images in the global batch, C captions and R hard negatives an image, image n owns the
T = C + R text rows ``n*T … n*T + T - 1``: its captions first, then its negatives. Process p of P holds images
``p*N/P … (p+1)*N/P - 1`` and exactly their text rows, so the processes' arrays, joined in order along the first axis,
are the batch that one process alone would make, for images and texts alike.

    images           {modality: u8[N, H, W, channels]}
    image_ids        i32[N, K]       the source's ids; K is 1 unless a transform of rows mixes examples
    image_weight     f32[N, K]       1
    tokens           i32[N*T, L]
    text_ids         i32[N*T, K]     the image's id; -1 for a row the image has no text for (padding)
    text_weight      f32[N*T, K]     1 for captions; 0 for hard negatives, which are nobody's positive, and for padding
    skipped          [(key, reason, detail)]: examples that could not be used; drawn ones stand in their places
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, get_args

import numpy as np

from mmjax.core.config import ConfigError, choose
from mmjax.data.chain import Chain
from mmjax.data.order import Arrangement, Order, Part
from mmjax.data.reader import Captions, Reader, Source
from mmjax.data.sample import Rows, Sample
from mmjax.data.token_cache import TokenCache
from mmjax.data.viewed import is_encoded

_CHOICES = 1  # a stream of random numbers; the order has 0, the reader 2
_CHUNK = 16  # rows that a thread makes at a time


class Stream(Protocol):
    """Batches without end; close it, or its threads and processes outlive their use."""

    def __iter__(self) -> Iterator[dict[str, Any]]: ...
    def __next__(self) -> dict[str, Any]: ...
    def close(self) -> None:
        """Stops the threads and processes that read ahead."""


class Batches:
    """``Batches(…)[step]`` is this process's rows of the global batch of that step (module docstring).

    Args:
      source: the examples; the first one's modalities and image sizes are everybody's. Groups of ``source.group``
        neighbours are shuffled as one and stay together in a batch. A mixture says its ``parts``.
      tokenizer: texts to i32[n, L].
      batch_size: images in the global batch. It may exceed the source: an example then comes twice, under one id.
      seed: 0 or more.
      chain: what happens to examples and rows; nothing, if left out.
      captions: ``random`` takes different ones of an image's captions, ``first`` the first ones.
      captions_per_image: caption rows an image.
      negatives_per_image: hard negative rows an image: false captions, drawn from the example's ``negatives``.
      order: ``shuffled`` gives every example once an epoch, each epoch in another order; ``stored`` as in the source.
        Batches run across the end of an epoch: nothing is dropped.
      distinct: no example twice in a batch, not even across the end of an epoch; what stands in for an example that
        cannot be used may be one that is there already.
      process_index: which share of the global batch.
      process_count: of how many.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Callable[[Sequence[str]], np.ndarray],
        *,
        batch_size: int,
        seed: int,
        chain: Chain | None = None,
        captions: Captions = "random",
        captions_per_image: int = 1,
        negatives_per_image: int = 0,
        order: Arrangement = "shuffled",
        distinct: bool = False,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self._source = source
        self._batch_size = batch_size
        self._seed = seed
        self._caption_rows = captions_per_image
        self._negative_rows = negatives_per_image
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("captions_per_image", captions_per_image, 1),
            ("negatives_per_image", negatives_per_image, 0),
            ("process_count", process_count, 1),
        ):
            _at_least(name, value, least)
        if not 0 <= process_index < process_count:
            raise ConfigError(
                f"process_index={process_index}: must be from 0 to process_count - 1 = {process_count - 1}"
            )
        self._check_divisible(process_count)
        if distinct and getattr(source, "rows_share_images", False):
            raise ConfigError(
                "distinct=True: rows of one image are examples of their own here; group them (the source's group=True)"
            )
        self._order = Order(
            getattr(source, "parts", None) or (Part("the source", len(source), 1.0),),
            batch_size=batch_size,
            seed=seed,
            group=source.group,
            arrangement=choose(order, get_args(Arrangement), path="order"),  # type: ignore[arg-type]
            one_part_a_batch=getattr(source, "one_source_a_batch", False),
            distinct=distinct,
        )
        share = batch_size // process_count
        self._rows = range(process_index * share, (process_index + 1) * share)
        self._tokens = TokenCache(tokenizer)
        self._chain = chain or Chain((), image_size=0, modalities=source.modalities)
        self._partners = self._chain.partners(batch_size=batch_size, group=source.group, share=self._rows)
        self._needed = sorted({*self._rows, *(row for pairs in self._partners for row in pairs.values())})
        self._threads = 1
        self._pool: ThreadPoolExecutor | None = None  # of a stream's own copy
        self._reader = Reader(
            source,
            self._chain,
            seed=seed,
            captions=choose(captions, get_args(Captions), path="captions"),  # type: ignore[arg-type]
            caption_rows=captions_per_image,
            negative_rows=negatives_per_image,
        )
        self._decodes = is_encoded(source)
        self._shapes = {name: image.shape for name, image in self._reader.first().images.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Modalities and their [H, W, channels] in a batch."""
        return dict(self._shapes)

    @property
    def decodes(self) -> bool:
        """Whether pictures are decoded on the way, which threads can do side by side."""
        return self._decodes

    def __getitem__(self, step: int) -> dict[str, Any]:
        start = step * self._batch_size
        places, draws = self._places(start), self._draws(step)
        count = len(self._needed)
        images = {name: np.empty((count, *shape), np.uint8) for name, shape in self._shapes.items()}
        samples: list[Sample | None] = [None] * count
        skipped: list[list[tuple[str, str, str]]] = [[] for _ in range(count)]

        def make(chunk: range) -> None:
            for at in chunk:
                row, place = self._needed[at], places[at]
                sample, skipped[at] = self._reader.sample(start + row, place, draws[at], part=self._order.part(place))
                for name, shape in self._shapes.items():
                    images[name][at] = _checked(sample, name, shape)
                sample.images = {}
                samples[at] = sample

        chunks = [range(at, min(at + _CHUNK, count)) for at in range(0, count, _CHUNK)]
        for _ in map(make, chunks) if self._pool is None else self._pool.map(make, chunks):
            pass
        rows = self._assemble([sample for sample in samples if sample is not None], images)
        rows = self._chain.combined(rows, partners=self._partners, start=start)
        return self._own(rows) | {"skipped": [entry for at in self._mine() for entry in skipped[at]]}

    def stream(self, *, start_step: int = 0, workers: int = 0, threads: int = 1, prefetch: int = 2) -> Stream:
        """The batches of steps ``start_step``, ``start_step + 1``, … without end, made ahead of their use.

        ``threads`` make a batch's rows side by side (0: ``next`` makes them, with nothing read ahead); more than one
        pay for sources that wait for files or decode pictures. ``workers`` are processes, each with so many threads,
        for sources that compute; a program that uses them needs ``if __name__ == "__main__":``. Either keeps
        ``prefetch`` batches ready.
        """
        # Grain imports jax; imported here, this module and whoever only indexes it stay free of both.
        import grain

        for name, value, least in (("start_step", start_step, 0), ("workers", workers, 0), ("threads", threads, 0)):
            _at_least(name, value, least)
        _at_least("prefetch", prefetch, 1)
        made = copy.copy(self)
        made._start(max(threads, 1))
        steps = grain.MapDataset.range(start_step, sys.maxsize)
        # Two batches in the making: one's rows are read while another's are put together.
        ahead = grain.ReadOptions(
            num_threads=min(threads, prefetch, 2), prefetch_buffer_size=prefetch if threads else 0
        )
        stream = steps.map(made.__getitem__).to_iter_dataset(ahead)
        if workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which only absl's own main parses
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=prefetch))
        return _Ahead(iter(stream), made)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start(self._threads)

    def _start(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mmjax-rows") if threads > 1 else None

    def _check_divisible(self, process_count: int) -> None:
        size, group = len(self._source), self._source.group
        if size == 0:
            raise ConfigError("the source is empty; check its split and its path")
        if size % group:
            raise ConfigError(
                f"the source has {size} examples in groups of {group}; its size must be divisible by that"
            )
        unit = math.lcm(process_count, group)
        if self._batch_size % unit:
            near = max(self._batch_size // unit, 1) * unit
            raise ConfigError(
                f"batch_size={self._batch_size}: must be divisible by {process_count} process(es) and by groups of "
                f"{group}; use {near}"
            )

    def _places(self, start: int) -> list[int]:
        """Where in the source the needed rows are: this process's, and those of others that they are combined with."""
        own = self._order.places(start + self._rows.start, start + self._rows.stop)
        return [
            own[row - self._rows.start] if row in self._rows else self._order.places(start + row, start + row + 1)[0]
            for row in self._needed
        ]

    def _draws(self, step: int) -> list[list[float]]:
        """For each needed row, one uniform number for each of its texts."""
        random = np.random.default_rng((self._seed, _CHOICES, step))
        return random.random((self._batch_size, self._caption_rows + self._negative_rows))[self._needed].tolist()

    def _assemble(self, samples: list[Sample], images: dict[str, np.ndarray]) -> Rows:
        texts: list[str | None] = []
        for sample in samples:
            texts += _padded(sample.captions, self._caption_rows)
            texts += _padded(sample.fields["negatives"], self._negative_rows)
        count, each = len(samples), self._caption_rows + self._negative_rows
        ids = _ids(samples)
        present = np.array([text is not None for text in texts]).reshape(count, each, 1)
        weight = present.astype(np.float32)
        weight[:, self._caption_rows :] = 0
        tokens = self._tokens([text or "" for text in texts])
        return Rows(
            numbers=np.array(self._needed, np.int64),
            partner=np.full(count, -1, np.int64),
            images=images,
            image_ids=ids[:, None],
            image_weight=np.ones((count, 1), np.float32),
            tokens=tokens.reshape(count, each, -1),
            text_ids=np.where(present, ids[:, None, None], -1).astype(np.int32),
            text_weight=weight,
            captions=self._caption_rows,
        )

    def _mine(self) -> range:
        first = self._needed.index(self._rows.start)
        return range(first, first + len(self._rows))

    def _own(self, rows: Rows) -> dict[str, Any]:
        """This process's rows as the flat dictionary of the module docstring."""
        mine = self._mine()
        own = slice(mine.start, mine.stop)
        return {
            "images": {name: x[own] for name, x in rows.images.items()},
            "image_ids": rows.image_ids[own],
            "image_weight": rows.image_weight[own],
            "tokens": rows.tokens[own].reshape(-1, rows.tokens.shape[-1]),
            "text_ids": rows.text_ids[own].reshape(-1, rows.text_ids.shape[-1]),
            "text_weight": rows.text_weight[own].reshape(-1, rows.text_weight.shape[-1]),
        }


class _Ahead:
    """Batches made ahead, and the threads that make them."""

    def __init__(self, batches: Any, made: Batches):
        self._batches = batches
        self._made = made

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self._batches)

    def close(self) -> None:
        self._batches.close()
        if self._made._pool is not None:
            self._made._pool.shutdown(cancel_futures=True)


def _padded(texts: list[str], count: int) -> list[str | None]:
    return [*texts, *[None] * (count - len(texts))]


def _ids(samples: list[Sample]) -> np.ndarray:
    ids = np.array([sample.id for sample in samples])
    wrong = (ids < 0) | (ids >= 1 << 31)
    if wrong.any():
        raise ValueError(f"the source has an example with id {ids[wrong][0]}; ids must be from 0 to 2**31 - 1")
    return ids.astype(np.int32)


def _checked(sample: Sample, name: str, shape: tuple[int, ...]) -> np.ndarray:
    image = sample.images.get(name)
    if image is None or image.shape != shape or image.dtype != np.uint8:
        found = "missing" if image is None else f"{image.dtype}{list(image.shape)}"
        raise ValueError(
            f"{name!r} of the example with id {sample.id} is {found}; the source's first example has "
            f"uint8{list(shape)}: bring all images to one size, as data.transforms=(('resize_crop', {{}}),) does"
        )
    return image


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name}={value}: must be at least {least}")
