"""Contrastive targets, derived from where each row comes from."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.core.types import Provenance

Labelling = Literal["provenance", "identity"]
"""``identity`` counts only a row's first source: the papers' own labels. ``provenance`` counts all."""


Parts = tuple[tuple[jax.Array, jax.Array], ...]
"""Ids i32[N] and weights f32[N] of every row's first source, then of the second, and so on.

Apart, because a loop over tiles would read the columns of ``Provenance`` one number at a time.
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """What the loss knows of one side's rows beside their embeddings."""

    parts: Parts  # as the labelling reads them
    whole: Parts  # as they are, where partners are masked; otherwise none
    valid: jax.Array  # bool[N]: False for padding

    @classmethod
    def of(cls, source: Provenance, *, targets: Labelling, mask_partners: bool) -> Labels:
        """Of rows from ``source``. Weights are data: no gradient goes through them."""
        source = jax.lax.stop_gradient(source)
        read = source if targets == "provenance" else source.identity()
        return cls(parts=_parts(read), whole=_parts(source) if mask_partners else (), valid=source.valid)


def targets_of(image: Labels, text: Labels) -> tuple[jax.Array, jax.Array]:
    """Targets f32[N, M], and which pairs bool[N, M] take part: all without padding, but for masked partners.

    Partners share an original without being positives, such as a mixed row and its source under ``identity``.
    """
    target = _mass(image.parts, text.parts)
    pairs = image.valid[:, None] & text.valid[None, :]
    if image.whole and text.whole:
        pairs &= (target > 0) | ~(_mass(image.whole, text.whole) > 0)
    return target, pairs


def source_mass(image: Provenance, text: Provenance) -> jax.Array:
    """How much of image i and text j is the same original: ``S_ij = Σ_k Σ_l w_ik · v_jl · [id_ik == id_jl]``.

    Returns f32[N, M]; K and L are loops, so that memory is N·M whatever the number of sources.
    """
    return _mass(_parts(image), _parts(text))


def _parts(source: Provenance) -> Parts:
    return tuple((source.ids[:, k], source.weight[:, k]) for k in range(source.ids.shape[1]))


def _mass(image: Parts, text: Parts) -> jax.Array:
    mass = jnp.zeros((image[0][0].shape[0], text[0][0].shape[0]), jnp.float32)
    for image_ids, image_weight in image:
        for text_ids, text_weight in text:
            same = image_ids[:, None] == text_ids[None, :]
            mass += jnp.where(same, image_weight[:, None] * text_weight[None, :], 0.0)
    return mass


def similarity(image: jax.Array, text: jax.Array) -> jax.Array:
    """Cosines f32[N, M] of unit rows, in full float32: TPUs and recent GPUs would round the product otherwise."""
    return jnp.einsum("nd,md->nm", image, text, precision=jax.lax.Precision.HIGHEST)


def pulled(by_logit: jax.Array, image: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``(G z_text, Gᵀ z_image)`` for a gradient ``G`` by cosines: that by the embeddings, as precise as they."""
    highest = jax.lax.Precision.HIGHEST
    rows = jnp.einsum("nm,md->nd", by_logit, text, precision=highest)
    return rows, jnp.einsum("nm,nd->md", by_logit, image, precision=highest)
