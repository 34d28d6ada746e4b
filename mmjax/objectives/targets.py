"""Contrastive targets, derived from where each row comes from."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.types import Provenance

Labelling = Literal["provenance", "identity"]
"""``identity`` counts only a row's first source: the papers' own labels. ``provenance`` counts all."""


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


def check_partners(mask_partners: bool, labelling: Labelling) -> None:
    """Raises where ``mask_partners`` could have no effect."""
    if mask_partners and labelling == "provenance":
        raise ConfigError(
            "objective.mask_partners=True: with targets='provenance' partners are positives; use targets='identity'"
        )


def similarity(image: jax.Array, text: jax.Array) -> jax.Array:
    """Cosines f32[N, M] of unit rows, in full float32: TPUs and recent GPUs would round the product otherwise."""
    return jnp.einsum("nd,md->nm", image, text, precision=jax.lax.Precision.HIGHEST)
