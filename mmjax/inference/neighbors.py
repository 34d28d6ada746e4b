"""The nearest neighbors of all embeddings: exact, block by block on all devices, with ties in a defined order."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.inference.search import find_nearest

_BLOCK = 512  # queries of a product
_SLACK = 8  # more candidates than neighbors, for what float32 rounds


def find_neighbors(
    embeddings: np.ndarray, count: int, *, progress: Callable[[int], None] = lambda done: None
) -> np.ndarray:
    """i32[n, count]: for each row the other rows with the largest cosines, the largest first, ties by row number.

    Devices find candidates in float32, and their cosines are computed again in float64. Where more rows than these may
    be as near as the last one, such as copies of one picture, all cosines of that row are. So the result is the same
    on any devices. Of several processes each finds those of a part of the rows, and all have the result.

    Args:
        embeddings: f32[n, E], rows of length one.
        count: At most n - 1.
        progress: Called with the number of rows that are done; those of this process.
    """
    n, count = len(embeddings), min(count, len(embeddings) - 1)
    wide = min(count + 1 + _SLACK, n)
    mesh = jax.make_mesh((len(jax.local_devices()),), ("rows",), devices=jax.local_devices())
    table = jax.device_put(embeddings, NamedSharding(mesh, PartitionSpec()))
    split, block = NamedSharding(mesh, PartitionSpec("rows")), -(-_BLOCK // mesh.size) * mesh.size
    rounding = embeddings.shape[1] * np.finfo(np.float32).eps  # of two cosines
    own_rows = -(-n // jax.process_count())
    begin, end = (min(index * own_rows, n) for index in (jax.process_index(), jax.process_index() + 1))
    neighbors = np.empty((n, count), np.int32)
    for start in range(begin, end, block):
        queries = embeddings[start : min(start + block, end)]
        padded = np.zeros((block, embeddings.shape[1]), np.float32)
        padded[: len(queries)] = queries
        values, rows = jax.device_get(_candidates(table, jax.device_put(padded, split), wide))
        values, rows = values[: len(queries)], rows[: len(queries)]
        exact = np.einsum("qcd,qd->qc", embeddings[rows].astype(np.float64), queries.astype(np.float64))
        numbers = np.arange(start, start + len(queries))
        exact[rows == numbers[:, None]] = -np.inf
        order = np.lexsort((rows, -exact), axis=-1)[:, :count]
        neighbors[numbers] = np.take_along_axis(rows, order, 1)
        if wide < n:
            last = np.take_along_axis(exact, order[:, -1:], 1)[:, 0]
            for row in numbers[values[:, -1] >= last - 2 * rounding].tolist():
                nearest = find_nearest(embeddings, embeddings[row], count=count + 1)[0]
                neighbors[row] = nearest[nearest != row][:count]
        progress(start + len(queries) - begin)
    if jax.process_count() == 1:
        return neighbors
    own = np.zeros((own_rows, count), np.int32)
    own[: end - begin] = neighbors[begin:end]
    return np.asarray(multihost_utils.process_allgather(own)).reshape(-1, count)[:n]


@functools.partial(jax.jit, static_argnums=2)
def _candidates(table: jax.Array, queries: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    cosines = jnp.einsum("qd,nd->qn", queries, table, precision=jax.lax.Precision.HIGHEST)
    values, rows = jax.lax.top_k(cosines, count)
    return values, rows
