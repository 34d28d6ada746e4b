"""Contrastive targets, computed from the examples that each row is made of."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.core.types import Provenance

Labeling = Literal["provenance", "identity"]
"""``provenance`` counts all sources of a row; ``identity`` counts the first one alone, as the papers do."""

Sources = tuple[tuple[jax.Array, jax.Array], ...]
"""Ids i32[N] and weights f32[N] of every row's first source, then of the second, and so on.

They are separate vectors, because a loop over tiles would read the columns of ``Provenance`` one number at a time.
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """What the loss knows about one side's rows besides their embeddings."""

    sources: Sources  # those that count
    all_sources: Sources  # with masked partners; otherwise empty
    valid: jax.Array  # bool[N]: False for padding

    @classmethod
    def from_provenance(cls, source: Provenance, *, targets: Labeling, mask_partners: bool) -> Labels:
        """The labels of rows from ``source``. Weights are data: they have no gradient."""
        source = jax.lax.stop_gradient(source)
        counted = source if targets == "provenance" else source.identity()
        all_sources = _sources(source) if mask_partners else ()
        return cls(sources=_sources(counted), all_sources=all_sources, valid=source.valid)


def make_targets(image: Labels, text: Labels) -> tuple[jax.Array, jax.Array]:
    """Targets f32[N, M], and a mask bool[N, M] of the pairs that take part: all except padding and masked partners.

    Partners share an original without being positives, such as a mixed row and its second source under ``identity``.
    """
    target = _mass(image.sources, text.sources)
    pairs = image.valid[:, None] & text.valid[None, :]
    if image.all_sources and text.all_sources:
        pairs &= (target > 0) | ~(_mass(image.all_sources, text.all_sources) > 0)
    return target, pairs


def is_negative(side: Labels) -> jax.Array:
    """bool[N]: the rows of zero weight, which are negatives for the other side and have no loss of their own."""
    weights = [weight > 0 for _, weight in side.sources]
    return side.valid & ~jnp.any(jnp.stack(weights), axis=0)


def own_negatives(rows: Labels, columns: Labels) -> jax.Array:
    """bool[N, M]: whether column j is a negative that was made for the example of row i."""
    same = jnp.zeros((rows.valid.shape[0], columns.valid.shape[0]), bool)
    for row_ids, _ in rows.sources:
        for column_ids, _ in columns.sources:
            same |= (row_ids[:, None] == column_ids[None, :]) & (row_ids[:, None] >= 0)
    return same & rows.valid[:, None] & is_negative(columns)[None, :]


def without_negatives(source: Provenance) -> Provenance:
    """The same rows with those of zero weight turned into padding."""
    empty = ~jnp.any(source.weight > 0, axis=1, keepdims=True)
    return dataclasses.replace(source, ids=jnp.where(empty, -1, source.ids))


def source_mass(image: Provenance, text: Provenance) -> jax.Array:
    """How much of image i and text j is the same original: ``S_ij = Σ_k Σ_l w_ik · v_jl · [id_ik == id_jl]``.

    Here image 0 is example 7, image 1 is 3/4 of example 7 and 1/4 of example 8:

    >>> image = Provenance(ids=jnp.array([[7, -1], [7, 8]]), weight=jnp.array([[1.0, 0.0], [0.75, 0.25]]))
    >>> source_mass(image, Provenance.from_ids(jnp.array([7, 8]))).tolist()
    [[1.0, 0.0], [0.75, 0.25]]

    Args:
        image: Of N rows with K sources each.
        text: Of M rows with L sources each.

    Returns:
        f32[N, M]. K and L are loops, so that memory is N·M for any number of sources.
    """
    return _mass(_sources(image), _sources(text))


def _sources(source: Provenance) -> Sources:
    return tuple((source.ids[:, k], source.weight[:, k]) for k in range(source.ids.shape[1]))


def _mass(image: Sources, text: Sources) -> jax.Array:
    mass = jnp.zeros((image[0][0].shape[0], text[0][0].shape[0]), jnp.float32)
    for image_ids, image_weight in image:
        for text_ids, text_weight in text:
            same = image_ids[:, None] == text_ids[None, :]
            mass += jnp.where(same, image_weight[:, None] * text_weight[None, :], 0.0)
    return mass


def similarity(image: jax.Array, text: jax.Array) -> jax.Array:
    """Cosines f32[N, M] of unit rows, in full float32, which TPUs and recent GPUs do not use by default."""
    return jnp.einsum("nd,md->nm", image, text, precision=jax.lax.Precision.HIGHEST)


def embedding_gradients(by_cosine: jax.Array, image: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients by both sides' embeddings, ``(G z_text, Gᵀ z_image)``, of the gradient ``G`` by their cosines."""
    highest = jax.lax.Precision.HIGHEST
    by_image = jnp.einsum("nm,md->nd", by_cosine, text, precision=highest)
    return by_image, jnp.einsum("nm,nd->md", by_cosine, image, precision=highest)
