"""Batches as a pure function of (seed, step).

Which examples, in which order, with which of their captions: all of it is arithmetic on the numbers of the rows, done
for the global batch before a process takes its share. So nothing here depends on how many processes, workers or threads
there are, a run goes on at step k without reading what came before, and there is no iterator state to save.

How rows are composed. With N images in the global batch, C captions and R hard negatives an image, image n owns the
T = C + R text rows ``n*T … n*T + T - 1``: its captions first, then its negatives. Process p of P holds images
``p*N/P … (p+1)*N/P - 1`` and exactly their text rows, so the processes' arrays, joined in order along the first axis,
are the batch that one process alone would make, for images and texts alike.

    images           {modality: u8[N, H, W, channels]}
    image_ids        i32[N, 1]       the source's ids
    image_weight     f32[N, 1]       1
    tokens           i32[N*T, L]
    text_ids         i32[N*T, 1]     the image's id; -1 for a row the image has no text for (padding)
    text_weight      f32[N*T, 1]     1 for captions; 0 for hard negatives, which are nobody's positive, and for padding
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np

from mmjax.config import ConfigError, choose

Captions = Literal["random", "first"]
Order = Literal["shuffled", "stored"]

_ORDER, _CHOICES = 0, 1  # streams of random numbers
_LARGEST_TABLE = 1 << 20  # a permutation of as many is 8 MB, and made in some 20 ms
_CACHED_TEXTS = 1 << 17  # at 77 tokens about 70 MB, in each worker


class Source(Protocol):
    """Random access to examples; see ``mmjax.data.sources``."""

    group: int

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


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
        neighbours are shuffled as one and stay together in a batch.
      tokenizer: texts to i32[n, L].
      batch_size: images in the global batch. It may exceed the source: an example then comes twice, under one id.
      seed: 0 or more.
      captions: ``random`` takes different ones of an image's captions, ``first`` the first ones.
      captions_per_image: caption rows an image.
      negatives_per_image: hard negative rows an image: false captions, drawn from the example's ``negatives``.
      order: ``shuffled`` gives every example once an epoch, each epoch in another order; ``stored`` as in the source.
        Batches run across the end of an epoch: nothing is dropped.
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
        captions: Captions = "random",
        captions_per_image: int = 1,
        negatives_per_image: int = 0,
        order: Order = "shuffled",
        process_index: int = 0,
        process_count: int = 1,
    ):
        self._source = source
        self._batch_size = batch_size
        self._seed = seed
        self._captions = choose(captions, get_args(Captions), path="captions")
        self._order = choose(order, get_args(Order), path="order")
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
        example = source[0]
        self._shapes = _shapes(example)
        if not self._shapes:
            raise ConfigError("the source's examples have no images: a modality is an array of uint8[H, W, channels]")
        if negatives_per_image and "negatives" not in example:
            raise ConfigError(f"negatives_per_image={negatives_per_image}: the source supplies no negatives; use 0")
        share = batch_size // process_count
        self._rows = slice(process_index * share, (process_index + 1) * share)
        self._tokens = _TokenCache(tokenizer)

    def __getitem__(self, step: int) -> dict[str, Any]:
        examples = [self._source[index] for index in self._indices(step)]
        draws = self._draws(step)
        # Input-level augmentation belongs here: examples (or pairs of them) to examples, before they become arrays.
        return self._assemble(examples, draws)

    def stream(self, *, start_step: int = 0, workers: int = 0, threads: int = 1, prefetch: int = 2) -> Stream:
        """The batches of steps ``start_step``, ``start_step + 1``, … without end, made ahead of their use.

        ``threads`` read ahead, each making a whole batch (0: ``next`` makes it, with nothing read ahead); more than
        one pay for sources that wait for files. ``workers`` are processes, each with so many threads, for sources that
        compute; a program that uses them needs ``if __name__ == "__main__":``. Either keeps ``prefetch`` batches ready.
        """
        # Grain imports jax; imported here, this module and whoever only indexes it stay free of both.
        import grain

        for name, value, least in (("start_step", start_step, 0), ("workers", workers, 0), ("threads", threads, 0)):
            _at_least(name, value, least)
        _at_least("prefetch", prefetch, 1)
        steps = grain.MapDataset.range(start_step, sys.maxsize)
        ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch if threads else 0)
        stream = steps.map(self.__getitem__).to_iter_dataset(ahead)
        if workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which only absl's own main parses
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=prefetch))
        return iter(stream)

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

    def _indices(self, step: int) -> list[int]:
        """The places in the source of this process's rows at ``step``."""
        group, start = self._source.group, step * self._batch_size
        groups = len(self._source) // group
        rows = range(start + self._rows.start, start + self._rows.stop)
        needed = range(rows[0] // group, rows[-1] // group + 1)
        if self._order == "shuffled":
            places = _shuffled(needed, size=groups, seed=self._seed)
        else:
            places = [number % groups for number in needed]
        return [places[row // group - needed.start] * group + row % group for row in rows]

    def _draws(self, step: int) -> list[list[float]]:
        """For each of this process's rows, one uniform number for each of its texts."""
        random = np.random.default_rng((self._seed, _CHOICES, step))
        shape = (self._batch_size, self._caption_rows + self._negative_rows)
        return random.random(shape)[self._rows].tolist()

    def _assemble(self, examples: list[dict[str, Any]], draws: list[list[float]]) -> dict[str, Any]:
        texts: list[str | None] = []
        for example, numbers in zip(examples, draws, strict=True):
            texts += self._texts(example, numbers)
        rows = self._caption_rows + self._negative_rows
        ids = _ids(examples)
        present = np.array([text is not None for text in texts])
        weight = np.zeros((len(examples), rows), np.float32)
        weight[:, : self._caption_rows] = 1
        return {
            "images": _images(examples, self._shapes),
            "image_ids": ids[:, None],
            "image_weight": np.ones((len(examples), 1), np.float32),
            "tokens": self._tokens([text or "" for text in texts]),
            "text_ids": np.where(present, np.repeat(ids, rows), -1).astype(np.int32)[:, None],
            "text_weight": (weight.ravel() * present)[:, None],
        }

    def _texts(self, example: dict[str, Any], draws: list[float]) -> list[str | None]:
        captions, count = example["captions"], self._caption_rows
        if not captions:
            raise ValueError(f"the example with id {example['id']} has no captions; leave it out of the source's index")
        chosen = _different(captions, draws[:count]) if self._captions == "random" else captions[:count]
        texts = [*chosen, *[None] * (count - len(chosen))]
        if self._negative_rows:
            false = _different([false for _, _, false in example["negatives"]], draws[count:])
            texts += [*false, *[None] * (self._negative_rows - len(false))]
        return texts


class _TokenCache:
    """A tokenizer that remembers the first ``_CACHED_TEXTS`` different texts; of a small source, all of them."""

    def __init__(self, tokenizer: Callable[[Sequence[str]], np.ndarray]):
        self._tokenizer = tokenizer
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: list[str]) -> np.ndarray:
        new = list({text: None for text in texts if text not in self._known})
        fresh = dict(zip(new, self._tokenizer(new), strict=True)) if new else {}
        if len(self._known) < _CACHED_TEXTS:
            self._known.update(fresh)
        return np.array([fresh[text] if text in fresh else self._known[text] for text in texts], np.int32)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}


def _shuffled(numbers: range, *, size: int, seed: int) -> list[int]:
    """The place of each of ``numbers``: epoch e, numbers ``e*size … (e+1)*size - 1``, is a permutation of its own."""
    places: list[int] = []
    for epoch in range(numbers.start // size, (numbers.stop - 1) // size + 1):
        start, stop = max(numbers.start - epoch * size, 0), min(numbers.stop - epoch * size, size)
        if size <= _LARGEST_TABLE:
            places += _permutation(size, seed, epoch)[start:stop].tolist()
        else:
            # In constant memory, but some microseconds each, and hundreds where the size is small.
            from grain.experimental import index_shuffle

            key = int(np.random.SeedSequence((seed, _ORDER, epoch)).generate_state(1)[0])
            places += [index_shuffle(i, max_index=size - 1, seed=key, rounds=4) for i in range(start, stop)]
    return places


@functools.lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(size)


def _different(pool: Sequence[str], draws: list[float]) -> list[str]:
    """As many members of ``pool`` as there are uniform ``draws`` in [0, 1), none twice; all where it has fewer."""
    left = list(pool)
    return [left.pop(int(draw * len(left))) for draw in draws[: len(left)]]


def _ids(examples: list[dict[str, Any]]) -> np.ndarray:
    ids = np.array([example["id"] for example in examples])
    wrong = (ids < 0) | (ids >= 1 << 31)
    if wrong.any():
        raise ValueError(f"the source has an example with id {ids[wrong][0]}; ids must be from 0 to 2**31 - 1")
    return ids.astype(np.int32)


def _shapes(example: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Modalities and their [H, W, C]: every array of three axes is one."""
    return {name: x.shape for name, x in example.items() if isinstance(x, np.ndarray) and x.ndim == 3}


def _images(examples: list[dict[str, Any]], shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    stacked = {}
    for name, shape in shapes.items():
        images = []
        for example in examples:
            image = example.get(name)
            if image is None or image.shape != shape or image.dtype != np.uint8:
                found = "missing" if image is None else f"{image.dtype}{list(image.shape)}"
                raise ValueError(
                    f"{name!r} of the example with id {example['id']} is {found}; the source's first example has "
                    f"uint8{list(shape)}: have the source bring all images to one size"
                )
            images.append(image)
        stacked[name] = np.stack(images)
    return stacked


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name}={value}: must be at least {least}")
