"""Contrastive targets, derived from where each row comes from."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.types import Provenance

Labelling = Literal["provenance", "identity"]
"""``identity`` counts only a row's first source: the papers' own labels. ``provenance`` counts all."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """What the loss knows of one side's rows beside their embeddings."""

    source: Provenance  # as the labelling reads it
    whole: Provenance | None  # as it is, where partners are masked
    valid: jax.Array  # bool[N]: False for padding


def labels(source: Provenance, *, targets: Labelling, mask_partners: bool) -> Labels:
    """Of rows from ``source``. Weights are data: no gradient goes through them."""
    source = jax.lax.stop_gradient(source)
    return Labels(source=labelled(source, targets), whole=source if mask_partners else None, valid=source.valid)


def targets_of(image: Labels, text: Labels) -> tuple[jax.Array, jax.Array]:
    """Targets f32[N, M], and which pairs bool[N, M] take part: those without padding, but for masked partners."""
    target = source_mass(image.source, text.source)
    pairs = image.valid[:, None] & text.valid[None, :]
    if image.whole is not None and text.whole is not None:
        pairs &= ~partners(image.whole, text.whole, target)
    return target, pairs


def source_mass(image: Provenance, text: Provenance) -> jax.Array:
    """How much of image i and text j is the same original: ``S_ij = Σ_k Σ_l w_ik · v_jl · [id_ik == id_jl]``.

    Returns f32[N, M]; K and L are loops, so that memory is N·M whatever the number of sources.
    """
    mass = jnp.zeros((image.ids.shape[0], text.ids.shape[0]), jnp.float32)
    for k in range(image.ids.shape[1]):
        for m in range(text.ids.shape[1]):
            same = image.ids[:, k, None] == text.ids[None, :, m]
            mass += jnp.where(same, image.weight[:, k, None] * text.weight[None, :, m], 0.0)
    return mass


def labelled(source: Provenance, labelling: Labelling) -> Provenance:
    """``source`` as the chosen labelling reads it."""
    return source if labelling == "provenance" else source.identity()


def partners(image: Provenance, text: Provenance, target: jax.Array) -> jax.Array:
    """bool[N, M]: pairs that share an original and are no positives of ``target``, such as a mixed row and its source.

    Under ``identity`` they are negatives, although part of the one is in the other.
    """
    return (source_mass(image, text) > 0) & ~(target > 0)


def similarity(image: jax.Array, text: jax.Array) -> jax.Array:
    """Cosines f32[N, M] of unit rows, in full float32: TPUs and recent GPUs would round the product otherwise."""
    return jnp.einsum("nd,md->nm", image, text, precision=jax.lax.Precision.HIGHEST)


def pulled(by_logit: jax.Array, image: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``(G z_text, Gᵀ z_image)`` for a gradient ``G`` by cosines: that by the embeddings, as precise as they."""
    highest = jax.lax.Precision.HIGHEST
    rows = jnp.einsum("nm,md->nd", by_logit, text, precision=highest)
    return rows, jnp.einsum("nm,nd->md", by_logit, image, precision=highest)
