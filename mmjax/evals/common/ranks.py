"""Exact ranks by counting scores, block by block in a ring over devices: no sorting, no top-k, no whole matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.core.row_sharding import num_shards
from mmjax.evals.common.host_batches import to_global

IMAGE_CHUNK = 1024
TEXT_CHUNK = 4096

Ties = Literal["pessimistic", "optimistic"]
"""Whether a negative with the same score as the positive counts as above it, or as below."""


class Ranks(NamedTuple):
    """For each query, the number of negatives that score higher than its best positive, and that score the same."""

    above: np.ndarray  # i32[q]
    equal: np.ndarray  # i32[q]

    def rank(self, ties: Ties) -> np.ndarray:
        """i32[q], 0 is best."""
        return self.above + self.equal if ties == "pessimistic" else self.above


def count_ranks(
    images: np.ndarray,
    image_ids: np.ndarray,
    texts: np.ndarray,
    text_ids: np.ndarray,
    *,
    row_sharding: NamedSharding | None = None,
) -> tuple[Ranks, Ranks]:
    """The ranks of images as queries and of texts as queries.

    For image i: ``above_i = |{j : id_j ∉ ids_i, s_ij > p_i}|`` with ``p_i = max{s_ij : id_j ∈ ids_i}``; for texts with
    rows and columns exchanged. A text whose id no image has loses to all. NaN scores count as ties.

    Both passes (best positive, then counts) compute a pair in the same block of the same matrix product at the highest
    precision, so that equal embeddings have equal scores to the last bit.

    Args:
        images: f32[n, E].
        image_ids: i32[n], at least 0, or i32[n, k] with -1 after an image's last; an image and a text with the same id
            belong together.
        texts: f32[m, E].
        text_ids: i32[m].
        row_sharding: Splits images and texts over a mesh. Texts, with their counts, go around from device to device, so
            that none holds all of them. None: one device.

    Returns:
        Ranks of the n images and of the m texts.
    """
    image_ids = np.asarray(image_ids).reshape(len(images), -1)
    for name, ids in (("image_ids", image_ids[:, 0]), ("text_ids", text_ids)):
        if len(ids) and np.min(ids) < 0:
            raise ValueError(f"{name} has {np.min(ids)}: ids must not be negative")
    if unmatched := set(image_ids.ravel().tolist()) - set(np.asarray(text_ids).tolist()) - {-1}:
        raise ValueError(f"no text has the id {min(unmatched)} of an image: every image needs at least one text")
    shards = num_shards(row_sharding)
    # Pad blocks to multiples of this even for tiny inputs: the edge of a matrix product may be summed in another order
    # than its middle, which would break ties by position.
    tile = shards * -(-64 // shards)
    image_blocks = _blocks(images, image_ids, chunk=IMAGE_CHUNK, tile=tile)
    text_blocks = _blocks(texts, text_ids, chunk=TEXT_CHUNK, tile=64 * shards)
    if row_sharding is None:
        result = _compiled(None)(*map(jax.device_put, (*image_blocks, *text_blocks)))
    else:
        split = NamedSharding(row_sharding.mesh, PartitionSpec(None, *row_sharding.spec[:1]))
        result = _compiled(split)(*(to_global(array, split) for array in (*image_blocks, *text_blocks)))
    (above_i, equal_i), (above_t, equal_t) = jax.device_get(result)
    n, m = len(images), len(texts)
    return Ranks(above_i.ravel()[:n], equal_i.ravel()[:n]), Ranks(above_t.ravel()[:m], equal_t.ravel()[:m])


def _blocks(z: np.ndarray, ids: np.ndarray, *, chunk: int, tile: int) -> tuple[np.ndarray, np.ndarray]:
    # A small input takes a power of two of tiles: folds and splits of about one size then share a compiled program.
    size = min(-(-chunk // tile), 1 << (-(-len(z) // tile) - 1).bit_length()) * tile
    blocks = -(-len(z) // size)
    padded = np.zeros((blocks * size, z.shape[1]), np.float32)
    padded[: len(z)] = z
    padded_ids = np.full((blocks * size, *np.shape(ids)[1:]), -1, np.int32)
    padded_ids[: len(z)] = ids
    return padded.reshape(blocks, size, -1), padded_ids.reshape(blocks, size, *padded_ids.shape[1:])


Counts = tuple[jax.Array, jax.Array]
"""Scores above the positive and scores equal to it, i32 each."""


@functools.cache
def _compiled(sharding: NamedSharding | None) -> Callable[..., Any]:
    if sharding is None:
        return jax.jit(functools.partial(_count_blocks, shards=1, rotate=lambda tree: tree))
    axes, shards = sharding.spec[1], num_shards(NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[1])))
    ring = [(i, (i + 1) % shards) for i in range(shards)]

    def rotate(tree: Any) -> Any:
        return jax.tree.map(lambda array: jax.lax.ppermute(array, axes, ring), tree) if shards > 1 else tree

    counting = jax.shard_map(
        functools.partial(_count_blocks, shards=shards, rotate=rotate),
        mesh=sharding.mesh, in_specs=sharding.spec, out_specs=sharding.spec, check_vma=False,
    )  # fmt: skip
    return jax.jit(counting, out_shardings=NamedSharding(sharding.mesh, PartitionSpec()))


def _count_blocks(
    zi: jax.Array, ii: jax.Array, zt: jax.Array, it: jax.Array, *, shards: int, rotate: Callable[[Any], Any]
) -> tuple[Counts, Counts]:
    """From blocks f32[a, C, E], i32[a, C, K] and f32[b, D, E], i32[b, D] to counts i32[a, C] and i32[b, D].

    These are one device's; ``rotate`` exchanges arrays for those of the device before it in a ring of ``shards``.
    """

    def scores(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum("ce,de->cd", x, y, precision=jax.lax.Precision.HIGHEST)

    def is_positive(xi: jax.Array, yi: jax.Array) -> jax.Array:
        matches = (ids[:, None] == yi[None, :] for ids in xi.T)  # one after another: [C, D, K] would be large
        return functools.reduce(jnp.logical_or, matches) & (yi[None, :] >= 0)

    def best_positives(_: Any, carry: Any) -> Any:
        (zt, it, best_t), best_i = carry

        def step(best_t: jax.Array, chunk: Any) -> tuple[jax.Array, jax.Array]:
            x, xi, best = chunk

            def find(y: jax.Array, yi: jax.Array) -> tuple[jax.Array, jax.Array]:
                s = jnp.where(is_positive(xi, yi), scores(x, y), -jnp.inf)
                return s.max(1), s.max(0)

            def compare(text_chunk: Any) -> tuple[jax.Array, jax.Array]:
                y, yi = text_chunk
                # Captions stand in the order of their images, so most blocks have no positives.
                padding = jnp.iinfo(jnp.int32).max
                first_i, first_t = (jnp.where(ids < 0, padding, ids).min() for ids in (xi, yi))
                overlap = (first_i <= yi.max()) & (first_t <= xi.max())
                none = jnp.full(len(x), -jnp.inf), jnp.full(len(y), -jnp.inf)
                return jax.lax.cond(overlap, find, lambda y, yi: none, y, yi)

            rows, columns = jax.lax.map(compare, (zt, it))
            return jnp.maximum(best_t, columns), jnp.maximum(best, rows.max(0))

        best_t, best_i = jax.lax.scan(step, best_t, (zi, ii, best_i))
        return rotate((zt, it, best_t)), best_i

    def around(body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """After all steps each device has its own texts again."""
        return jax.lax.fori_loop(0, shards, body, carry)

    lowest = jnp.full(it.shape, -jnp.inf, jnp.float32), jnp.full(zi.shape[:2], -jnp.inf, jnp.float32)
    (zt, it, best_t), best_i = around(best_positives, ((zt, it, lowest[0]), lowest[1]))

    def count(s: jax.Array, positive: jax.Array, negative: jax.Array, axis: int) -> Counts:
        above = s > positive
        # "Not below" instead of "equal": a NaN score must not count as beaten.
        equal = ~(s < positive) & ~above
        above, equal = (jnp.sum(negative & hit, axis=axis, dtype=jnp.int32) for hit in (above, equal))
        return above, equal

    def count_all(_: Any, carry: Any) -> Any:
        (zt, it, best_t, counts_t), counts_i = carry

        def step(counts_t: Counts, chunk: Any) -> tuple[Counts, Counts]:
            x, xi, positive_i, counts_i = chunk

            def compare(text_chunk: Any) -> tuple[Counts, Counts]:
                y, yi, positive_t = text_chunk
                s = scores(x, y)
                negative = ~is_positive(xi, yi) & (xi[:, :1] >= 0) & (yi[None, :] >= 0)
                return count(s, positive_i[:, None], negative, 1), count(s, positive_t[None, :], negative, 0)

            rows, columns = jax.lax.map(compare, (zt, it, best_t))
            rows = jax.tree.map(lambda c: jnp.sum(c, 0, dtype=jnp.int32), rows)
            return jax.tree.map(jnp.add, counts_t, columns), jax.tree.map(jnp.add, counts_i, rows)

        counts_t, counts_i = jax.lax.scan(step, counts_t, (zi, ii, best_i, counts_i))
        return rotate((zt, it, best_t, counts_t)), counts_i

    zeros_t, zeros_i = jnp.zeros(it.shape, jnp.int32), jnp.zeros(zi.shape[:2], jnp.int32)
    (*_, counts_t), counts_i = around(count_all, ((zt, it, best_t, (zeros_t, zeros_t)), (zeros_i, zeros_i)))
    return counts_i, counts_t
