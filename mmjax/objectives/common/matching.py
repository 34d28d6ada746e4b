"""Image-text matching: which pairs of a batch are compared as wholes, drawn by provenance and by similarity."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.core.numerics import EXCLUDED
from mmjax.core.types import Provenance
from mmjax.objectives.common.targets import Labels, make_targets, source_mass

Mixed = Literal["positive", "leave_out"]
"""What rows of several sources are: positives of all of their sources, or no part of matching."""


class Pairs(NamedTuple):
    """Rows of images and of texts side by side, and whether they match."""

    image: jax.Array  # i32[P]
    text: jax.Array  # i32[P]
    matches: bool
    valid: jax.Array  # bool[P]: False where a row has no such partner


def draw_pairs(
    key: jax.Array,
    similarity: tuple[jax.Array, jax.Array],
    images: tuple[Provenance, Labels],
    texts: tuple[Provenance, Labels],
    *,
    mixed: Mixed = "positive",
) -> list[Pairs]:
    """A positive for each row of the side with more rows, a false text for each image, and a false image for each text.

    With targets ``S`` and logits ``L``, the positive of row i is j with probability ``S_ij / Σ_j S_ij``: the row of its
    own example, unless others have a part in it. Its negative is j with probability ``e^L_ij / Σ_(k ∈ N_i) e^L_ik``,
    where ``N_i`` are the rows that share no source with i: not a copy of its example, nor a mix that holds it. Hard
    negatives, text rows of zero weight, are among the false texts of all images.

    Args:
        key: A random key.
        similarity: L of images by texts f32[N, M], and of texts by images f32[M, N].
        images: What the images are made of, and their labels.
        texts: Likewise.
        mixed: What rows of several sources are.
    """
    positive, negative, own = _relations(images, texts, mixed)
    by_positive, by_text, by_image = jax.random.split(key, 3)
    n, m = positive.shape
    text_of, has_text = _draw(by_text, jax.lax.stop_gradient(similarity[0]), negative)
    image_of, has_image = _draw(by_image, jax.lax.stop_gradient(similarity[1]), negative.T)
    is_image, is_text = jnp.any(positive, axis=1), jnp.any(positive, axis=0)  # hard negatives have no pair of their own
    each_image, each_text = jnp.arange(n, dtype=jnp.int32), jnp.arange(m, dtype=jnp.int32)
    if n > m:
        partner, has_partner = _draw(by_positive, own, positive)
        positives = Pairs(each_image, partner, True, has_partner)
    else:
        partner, has_partner = _draw(by_positive, own.T, positive.T)
        positives = Pairs(partner, each_text, True, has_partner)
    return [
        positives,
        Pairs(each_image, text_of, False, has_text & is_image),
        Pairs(image_of, each_text, False, has_image & is_text),
    ]


def draw_positives(
    key: jax.Array, rows: tuple[Provenance, Labels], columns: tuple[Provenance, Labels]
) -> tuple[jax.Array, jax.Array]:
    """i32[N]: a column that is a positive of each row, by ``S_ij / Σ_j S_ij``; and bool[N], whether there is any."""
    positive, _, own = _relations(rows, columns, "positive")
    return _draw(key, own, positive)


def _relations(
    rows: tuple[Provenance, Labels], columns: tuple[Provenance, Labels], mixed: Mixed
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which pairs are positives and which negatives, and the logarithm of the positives' targets."""
    target, takes_part = make_targets(rows[1], columns[1])
    if mixed == "leave_out":
        takes_part &= ~_is_mixed(rows[0])[:, None] & ~_is_mixed(columns[0])[None, :]
    positive = takes_part & (target > 0)
    negative = takes_part & ~(target > 0) & ~(source_mass(rows[0], columns[0]) > 0)
    return positive, negative, jnp.log(jnp.where(positive, target, 1.0))


def _draw(key: jax.Array, logits: jax.Array, among: jax.Array) -> tuple[jax.Array, jax.Array]:
    """i32[N]: a column for each row by the softmax of its logits ``among`` bool[N, M]; and whether there is any."""
    drawn = jax.random.categorical(key, jnp.where(among, logits, EXCLUDED), axis=1)
    return drawn.astype(jnp.int32), jnp.any(among, axis=1)


def _is_mixed(source: Provenance) -> jax.Array:
    return jnp.sum(source.weight > 0, axis=1) > 1
