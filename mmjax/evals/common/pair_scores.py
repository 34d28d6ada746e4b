"""Scores of pairs of an image and a text that a model reads together, images encoded once each."""

from __future__ import annotations

import collections
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.evals.common.host_batches import HostBatch, to_global

IN_FLIGHT = 4
"""Batches of scores that may wait on the device."""


HEADS = ("match", "answer", "answer_pair", "grad_cam")


class Matcher(NamedTuple):
    """What scores pairs, as pure functions."""

    encode: Callable[[Any, dict[str, jax.Array]], jax.Array]  # (params, {modality: u8[B, H, W, C]}) -> [B, T, D]
    # (params, tokens [B, T, D], ids i32[B, L]) -> f32[B]; None: there is no such head
    match: Callable[[Any, jax.Array, jax.Array], jax.Array] | None
    answer: Callable[[Any, jax.Array, jax.Array], jax.Array] | None = None  # the same, -> f32[B, answers]
    # The same with tokens [B, 2, T, D], of two pictures an example, which ``encode`` then returns.
    answer_pair: Callable[[Any, jax.Array, jax.Array], jax.Array] | None = None
    # A map f32[B, side * side] of the picture, row by row: which patches a match is owed to.
    grad_cam: Callable[[Any, jax.Array, jax.Array], jax.Array] | None = None
    answers: tuple[str, ...] = ()  # of both heads, in their order, if the objective names them
    modalities: tuple[str, ...] | None = None  # what ``encode`` is given; None: what embeddings are made of


class PairScorer:
    """A ``Matcher``, compiled for batches of one size."""

    def __init__(self, matcher: Matcher, *, batch_size: int, row_sharding: NamedSharding | None):
        def at_places(head: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
            return lambda params, tokens, places, ids: head(params, tokens[places], ids)

        heads = {name: head for name in HEADS if (head := getattr(matcher, name)) is not None}
        self.modalities = matcher.modalities
        self._batch_size, self._row_sharding = batch_size, row_sharding
        self._host_batch = HostBatch(batch_size, row_sharding)
        if row_sharding is None:
            self._encode = jax.jit(matcher.encode)
            self._heads = {name: jax.jit(at_places(head)) for name, head in heads.items()}
        else:
            rows, whole = row_sharding, NamedSharding(row_sharding.mesh, PartitionSpec())
            self._encode = jax.jit(matcher.encode, in_shardings=(None, rows), out_shardings=rows)
            shardings: dict[str, Any] = {"in_shardings": (None, rows, rows, rows), "out_shardings": whole}
            self._heads = {name: jax.jit(at_places(head), **shardings) for name, head in heads.items()}

    def __call__(
        self,
        params: Any,
        batches: Iterable[dict[str, np.ndarray]],
        images: np.ndarray,
        ids: np.ndarray,
        texts: np.ndarray,
        *,
        head: str = "match",
    ) -> np.ndarray:
        """f32[p, …]: how well each pair matches, or the scores of answers.

        Args:
            params: Of the model.
            batches: This process's rows of each batch of a split's images, in order; they are read once.
            images: i64[p], the number of each pair's image in the split.
            ids: i32[n, L], tokens of texts.
            texts: i64[p], which of them is the pair's.
            head: One of ``HEADS``.
        """
        done: list[tuple[np.ndarray, np.ndarray]] = []
        pending: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()

        def collect() -> None:
            rows, values = pending.popleft()
            done.append((rows, np.asarray(jax.device_get(values))[: len(rows)]))

        order = np.argsort(images, kind="stable")
        size = self._batch_size
        for number, batch in enumerate(batches):
            first, last = np.searchsorted(images[order], (number * size, (number + 1) * size))
            own = order[first:last]
            if not len(own):
                continue
            tokens = self._encode(params, jax.tree.map(self._host_batch.to_device, batch))
            for start in range(0, len(own), size):
                rows = own[start : start + size]
                padded = rows[np.minimum(np.arange(size), len(rows) - 1)]
                places = (images[padded] - number * size).astype(np.int32)
                arrays = (self._place(x) for x in (places, ids[texts[padded]]))
                pending.append((rows, self._heads[head](params, tokens, *arrays)))
                if len(pending) > IN_FLIGHT:
                    collect()
        while pending:
            collect()
        scores = np.concatenate([values for _, values in done])
        return scores[np.argsort(np.concatenate([rows for rows, _ in done]))]

    @property
    def heads(self) -> Collection[str]:
        """Which there are."""
        return self._heads.keys()

    def _place(self, array: np.ndarray) -> jax.Array:
        return jax.device_put(array) if self._row_sharding is None else to_global(array, self._row_sharding)
