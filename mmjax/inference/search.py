"""The nearest of many embeddings: exact, and with ties in a defined order."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from mmjax.core.printable import printable
from mmjax.data.sample import as_unreadable
from mmjax.inference.embedding_store import EmbeddingStore
from mmjax.inference.thumbnails import make_thumbnail

_THREADS = 4  # that read pictures
_CHUNK = 1 << 10  # rows whose cosines are computed in float64 at a time


def find_nearest(embeddings: np.ndarray, query: np.ndarray, *, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows with the largest cosines.

    One product in float32 finds the candidates: all rows within its rounding error of the last place. Their cosines are
    then computed in float64, row by row, so that equal rows have equal cosines wherever they lie. Ties are in the order
    of the rows, whatever the number of threads.

    Args:
        embeddings: f32[n, E], rows of length one.
        query: f32[E], of length one.
        count: How many; all rows if there are fewer.

    Returns:
        Row numbers i64[count] and cosines f64[count], the largest first.
    """
    count = min(count, len(embeddings))
    if not count:
        return np.empty(0, np.int64), np.empty(0)
    approximate = embeddings @ query
    last = np.partition(approximate, -count)[-count]
    rounding = embeddings.shape[1] * np.finfo(np.float32).eps  # of the last one's cosine and of a candidate's
    rows = np.flatnonzero(approximate >= last - rounding)
    exact = np.empty(len(rows))
    for start in range(0, len(rows), _CHUNK):
        chunk = embeddings[rows[start : start + _CHUNK]].astype(np.float64)
        exact[start : start + _CHUNK] = np.einsum("ij,j->i", chunk, query.astype(np.float64))
    order = np.lexsort((rows, -exact))[:count]
    return rows[order], exact[order]


class Match(NamedTuple):
    """One of the nearest pictures."""

    rank: int  # from 1
    cosine: float
    id: int
    path: str
    row: int


class Searcher:
    """Finds and shows the nearest of embedded pictures."""

    def __init__(self, store: EmbeddingStore):
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def find(self, embedding: np.ndarray, *, count: int) -> list[Match]:
        """The nearest pictures of an embedding f32[E], the nearest first."""
        rows, cosines = find_nearest(self._store.embeddings, embedding, count=count)
        return [
            Match(rank, cosine, int(self._store.ids[row]), self._store.paths[row], row)
            for rank, (row, cosine) in enumerate(zip(rows.tolist(), cosines.tolist(), strict=True), start=1)
        ]

    def show(self, matches: Sequence[Match]) -> list[dict[str, Any]]:
        """What a page shows of them: names that are safe to show, and thumbnails or why there is none."""
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self._show, matches))

    def _show(self, match: Match) -> dict[str, Any]:
        path = printable(match.path.encode(errors="backslashreplace").decode())
        shown = {"rank": match.rank, "cosine": match.cosine, "id": str(match.id), "path": path}
        try:
            thumbnail = make_thumbnail(self._store.read_picture(match.row))
        except Exception as error:  # of the source, which may have gone or changed
            return shown | {"problem": as_unreadable(error, path).reason}
        return shown | {"picture": thumbnail.uri, "small": thumbnail.small}
