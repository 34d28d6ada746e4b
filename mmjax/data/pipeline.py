"""Batches as a pure function of (seed, step).

The choice of examples, their order, their captions and all transforms depend on row numbers alone, and are decided for
the global batch before a process takes its rows. So batches do not depend on the number of processes, workers or
threads, a run resumes at step k without reading earlier batches, and there is no iterator state to save.

Layout: with N images in the global batch, and C captions and R hard negatives per image, image n owns the T = C + R
text rows ``n*T … n*T + T - 1``, captions first. Process p of P holds images ``p*N/P … (p+1)*N/P - 1`` and their text
rows, so the arrays of all processes, concatenated along the first axis, equal the batch of a single process.

    images           {modality: u8[N, H, W, channels], or f32[N, T, D + 1] of sequences (``sequences.frames``)}
    image_ids        i32[N, K]       the source's ids; K is 1 unless a batch transform mixes examples
    image_weight     f32[N, K]       1
    tokens           i32[N*T, L]
    text_ids         i32[N*T, K]     the image's id; -1 for padding, where an image has fewer texts
    text_weight      f32[N*T, K]     1 for captions; 0 for hard negatives, which match no image, and for padding
    image_group      i32[N]          with ``text_groups``: the image's group, -1 where it is unknown or mixed
    text_group       i32[N*T]        its text's, by ``text_groups``
    image_teacher    f32[N, E]       with ``data.teacher``: its embeddings, zeros where it has none
    text_teacher     f32[N*T, E]
    quantile         f32[N]          of the examples' scores, if the source gives ``score_quantile``
    labels           i32[N, G]       with ``labels``: those of the image's example, -1 behind them
    unreadable       [(key, reason, detail)]: examples that were replaced by others
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol, get_args

import numpy as np

from mmjax.core.config import ConfigError, Ge, choose
from mmjax.data.clusters.order import ClusteredOrder
from mmjax.data.clusters.table import Clusters
from mmjax.data.eval_view import is_encoded
from mmjax.data.order import Arrangement, make_order
from mmjax.data.reader import Captions, Reader
from mmjax.data.sample import BatchRows, ImageSpec, Sample, group_arrays, pad, sample_arrays
from mmjax.data.sequences.labels import LabelSequences
from mmjax.data.source import Source, UnreadableEntry
from mmjax.data.token_cache import TokenCache
from mmjax.data.transform_chain import TransformChain

_STREAM = 1  # of random numbers; the order has 0, the reader 2
_CHUNK = 16  # rows per task of a thread


class Stream(Protocol):
    """An endless iterator over batches. Close it, or its threads and processes keep running."""

    def __iter__(self) -> Iterator[dict[str, Any]]: ...
    def __next__(self) -> dict[str, Any]: ...
    def close(self) -> None:
        """Stops the threads and processes that prefetch."""


class Batches:
    """``Batches(…)[step]`` are this process's rows of the global batch of that step (see the module docstring).

    Args:
      source: the examples; all must have the modalities and image sizes of the first one. Groups of ``source.group``
        neighbors stay together. A mixture has ``components``.
      tokenizer: texts to i32[n, L].
      batch_size: images in the global batch. If it exceeds the source, an example comes twice, under one id.
      seed: 0 or more.
      chain: the transforms; none if left out.
      captions: ``random`` samples an image's captions without replacement, ``first`` takes the first ones.
      captions_per_image: caption rows per image.
      negatives_per_image: hard negative rows per image: false captions, sampled from the example's ``negatives``.
      order: ``shuffled`` yields every example once per epoch, each epoch in another order; ``stored`` keeps the
        source's order. Batches may span two epochs, so no example is dropped.
      clusters: neighbors, for batches of similar examples in place of ``order``.
      groups: fields of the examples that make up their group (``mmjax.core.groups``); none: all are one group.
      text_groups: of texts: that of their ``example``; the ``kind`` of a hard negative (captions have none); the
        ``place`` of a caption, or of a negative's true caption, among those of its image; None: there are no groups.
      labels: which sequences of labels examples have; None: batches have none.
      distinct: no example twice in a batch, also of two epochs; the substitute of an unreadable one may be there.
      process_index: of this process; processes that load the same rows count as one.
      process_count: number of processes, which divides ``batch_size``.

    Example::

        batches = Batches(source, tokenizer, batch_size=256, seed=0)
        batches[10]["tokens"]  # of step 10, without making the ten batches before
        stream = batches.stream(start_step=10, threads=4)
        batch = next(stream)
        stream.close()
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Callable[[Sequence[str]], np.ndarray],
        *,
        batch_size: int,
        seed: int,
        chain: TransformChain | None = None,
        captions: Captions = "random",
        captions_per_image: int = 1,
        negatives_per_image: int = 0,
        order: Arrangement = "shuffled",
        distinct: bool = False,
        clusters: Clusters | None = None,
        groups: Sequence[str] = (),
        text_groups: Literal["example", "kind", "place"] | None = None,
        labels: LabelSequences | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self._source = source
        self._batch_size = batch_size
        self._seed = seed
        self._caption_rows = captions_per_image
        self._negative_rows = negatives_per_image
        self._text_groups = text_groups
        for name, value, limits in (
            ("batch_size", batch_size, Ge(1)),
            ("seed", seed, Ge(0)),
            ("captions_per_image", captions_per_image, Ge(1)),
            ("negatives_per_image", negatives_per_image, Ge(0)),
            ("process_count", process_count, Ge(1)),
        ):
            limits.check(value, path=name)
        if not 0 <= process_index < process_count:
            raise ConfigError(
                f"process_index={process_index}: must be from 0 to process_count - 1 = {process_count - 1}"
            )
        self._check_divisible(process_count)
        if distinct and source.rows_share_images:
            raise ConfigError(
                "distinct=True: rows of one image are separate examples here; group them (the source's group=True)"
            )
        choose(order, get_args(Arrangement), path="order")
        choose(captions, get_args(Captions), path="captions")
        self._order = make_order(
            source, batch_size=batch_size, seed=seed, arrangement=order, distinct=distinct, clusters=clusters
        )
        rows = batch_size // process_count
        self._host_rows = range(process_index * rows, (process_index + 1) * rows)
        self._tokenize = TokenCache(tokenizer)
        self._chain = chain or TransformChain((), image_size=0, modalities=source.modalities)
        self._partners = self._chain.partners(batch_size=batch_size, group=source.group, host_rows=self._host_rows)
        self._needed = sorted({*self._host_rows, *(row for pairs in self._partners for row in pairs.values())})
        first = self._needed.index(self._host_rows.start)
        self._own_rows = slice(first, first + rows)  # this process's among the needed ones
        self._threads = 1
        self._pool: ThreadPoolExecutor | None = None  # only a stream's copy has one
        self._reader = Reader(
            source,
            self._chain,
            seed=seed,
            captions=captions,
            caption_rows=captions_per_image,
            negative_rows=negatives_per_image,
            groups=groups,
            labels=labels,
        )
        self._decodes = is_encoded(source)
        self._image_specs = {name: ImageSpec(x.shape, x.dtype) for name, x in self._reader.first().images.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Modalities and their [H, W, channels] in a batch."""
        return {name: spec.shape for name, spec in self._image_specs.items()}

    @property
    def decodes(self) -> bool:
        """Whether pictures are decoded, which threads do in parallel."""
        return self._decodes

    def __getitem__(self, step: int) -> dict[str, Any]:
        start = step * self._batch_size
        places, draws = self._places(start), self._draws(step)
        count = len(self._needed)
        images = {name: np.empty((count, *spec.shape), spec.dtype) for name, spec in self._image_specs.items()}
        samples: list[Sample | None] = [None] * count
        unreadable: list[list[UnreadableEntry]] = [[] for _ in range(count)]

        def read(chunk: range) -> None:
            for i in chunk:
                component = self._order.component_range(places[i])
                sample, unreadable[i] = self._reader.sample(
                    start + self._needed[i], places[i], draws[i], component=component
                )
                for name in self._image_specs:
                    images[name][i] = sample.images[name]
                sample.images = {}
                samples[i] = sample

        chunks = [range(i, min(i + _CHUNK, count)) for i in range(0, count, _CHUNK)]
        for _ in map(read, chunks) if self._pool is None else self._pool.map(read, chunks):
            pass
        made = [sample for sample in samples if sample is not None]
        made = self._chain.combine_texts(made, rows=self._needed, partners=self._partners, step=step, start=start)
        rows = self._assemble(made, images, step)
        rows = self._chain.apply_batch_transforms(rows, partners=self._partners, start=start)
        own = self._own_rows
        arrays = _to_arrays(rows, own) | sample_arrays(made, rows, own)
        if self._text_groups is not None:
            arrays |= group_arrays(made, rows, own, self._text_groups, self._negative_rows)
        return arrays | {"unreadable": [entry for entries in unreadable[own] for entry in entries]}

    def stream(self, *, start_step: int = 0, workers: int = 0, threads: int = 1, prefetch: int = 2) -> Stream:
        """The batches of steps ``start_step``, ``start_step + 1``, … without end, prefetched.

        Args:
          start_step: the first batch's step.
          workers: processes that make batches, for sources that are bound by Python; a script that uses them needs
            ``if __name__ == "__main__":``.
          threads: how many read the rows of a batch in parallel, in each process; with 0 nothing is prefetched.
          prefetch: batches that each process keeps ready.
        """
        # Grain imports jax, so it is imported only here: indexing batches needs neither.
        import grain

        for name, value in (("start_step", start_step), ("workers", workers), ("threads", threads)):
            Ge(0).check(value, path=name)
        Ge(1).check(prefetch, path="prefetch")
        batches = copy.copy(self)
        batches._start_pool(max(threads, 1))
        steps = grain.MapDataset.range(start_step, sys.maxsize)
        # Two batches at a time: the rows of one are read while the other is assembled.
        ahead = grain.ReadOptions(
            num_threads=min(threads, prefetch, 2), prefetch_buffer_size=prefetch if threads else 0
        )
        stream = steps.map(batches.__getitem__).to_iter_dataset(ahead)
        if workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which only absl's own main parses
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=prefetch))
        return _PrefetchedStream(iter(stream), batches)

    def with_clusters(self, clusters: Clusters) -> Batches:
        """The same batches in the order of other neighbors."""
        other = copy.copy(self)
        other._order = ClusteredOrder(clusters, batch_size=self._batch_size, seed=self._seed)
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_pool(self._threads)

    def _start_pool(self, threads: int) -> None:
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
        """The source indices of the needed rows: this process's own, and the rows that they are mixed with."""
        own, first = self._order.places(start + self._host_rows.start, start + self._host_rows.stop), self._host_rows[0]
        return [
            own[row - first] if row in self._host_rows else self._order.places(start + row, start + row + 1)[0]
            for row in self._needed
        ]

    def _draws(self, step: int) -> list[list[float]]:
        """For each needed row, one uniform number per text."""
        random = np.random.default_rng((self._seed, _STREAM, step))
        return random.random((self._batch_size, self._caption_rows + self._negative_rows))[self._needed].tolist()

    def _assemble(self, samples: list[Sample], images: dict[str, np.ndarray], step: int) -> BatchRows:
        texts: list[str | None] = []
        for sample in samples:
            texts += pad(sample.captions, self._caption_rows)
            texts += pad([false for _, _, false in sample.fields["negatives"]], self._negative_rows)
        count, each = len(samples), self._caption_rows + self._negative_rows
        ids = np.array([sample.id for sample in samples], np.int32)
        present = np.array([text is not None for text in texts]).reshape(count, each, 1)
        weight = present.astype(np.float32)
        weight[:, self._caption_rows :] = 0
        tokens = self._tokenize([text or "" for text in texts])
        return BatchRows(
            numbers=np.array(self._needed, np.int64),
            partner=np.full(count, -1, np.int64),
            images=images,
            image_ids=ids[:, None],
            image_weight=np.ones((count, 1), np.float32),
            tokens=tokens.reshape(count, each, -1),
            text_ids=np.where(present, ids[:, None, None], -1).astype(np.int32),
            text_weight=weight,
            captions=self._caption_rows,
            step=step,
        )


def _to_arrays(rows: BatchRows, own: slice) -> dict[str, Any]:
    """The ``own`` rows as the dictionary of the module docstring."""
    return {
        "images": {name: x[own] for name, x in rows.images.items()},
        "image_ids": rows.image_ids[own],
        "image_weight": rows.image_weight[own],
        "tokens": rows.tokens[own].reshape(-1, rows.tokens.shape[-1]),
        "text_ids": rows.text_ids[own].reshape(-1, rows.text_ids.shape[-1]),
        "text_weight": rows.text_weight[own].reshape(-1, rows.text_weight.shape[-1]),
    }


class _PrefetchedStream:
    """Grain's iterator, and the threads of the batches that it reads."""

    def __init__(self, iterator: Any, batches: Batches):
        self._iterator = iterator
        self._batches = batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self._iterator)

    def close(self) -> None:
        self._iterator.close()
        if self._batches._pool is not None:
            self._batches._pool.shutdown(cancel_futures=True)
