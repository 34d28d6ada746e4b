"""Batches, and the examples that their rows are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

Metrics = dict[str, Any]
"""Names, with slashes between parts, to scalars: ``{"loss": f32[], "mixup/loss": f32[]}``."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """The original examples that each row of images (or of texts) is made of.

    The contrastive target of image i and text j follows from both sides' provenance:
    ``S_ij = Σ_k Σ_l w_ik · v_jl · [id_ik == id_jl]``.

    A row of zero weight is a negative for every other row and has no loss of its own. A row whose first id is negative
    is padding and takes no part.

    >>> mixed = Provenance(ids=jnp.array([[3, 5]]), weight=jnp.array([[0.75, 0.25]]))  # 3/4 of example 3, 1/4 of 5
    >>> mixed.identity().ids.tolist(), mixed.identity().weight.tolist()
    ([[3]], [[1.0]])
    """

    ids: jax.Array  # i32[B, K]
    weight: jax.Array  # f32[B, K]
    group: jax.Array | None = None  # i32[B], see ``mmjax.core.groups``; None: rows have none
    teacher: jax.Array | None = None  # f32[B, E]: embeddings by another model, zeros of rows that it does not know

    @property
    def valid(self) -> jax.Array:
        """bool[B]: False for padding."""
        return self.ids[:, 0] >= 0

    @classmethod
    def from_ids(cls, ids: jax.Array) -> Provenance:
        """Rows that are one example each: ``ids`` i32[B]; negative ids are padding."""
        return cls(ids=ids[:, None], weight=(ids >= 0).astype(jnp.float32)[:, None])

    def identity(self) -> Provenance:
        """The first source of each row alone, with weight 1: the labels of papers that ignore what was mixed in.

        A row of zero weight keeps zero weight.
        """
        has_weight = jnp.any(self.weight > 0, axis=1, keepdims=True)
        return Provenance(ids=self.ids[:, :1], weight=has_weight.astype(jnp.float32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """A global batch of N images and M texts; N and M may differ."""

    images: dict[str, jax.Array]  # modality -> u8[N, H, W, C]
    tokens: jax.Array  # i32[M, L]
    image_source: Provenance  # of N rows
    text_source: Provenance  # of M rows
    quantile: jax.Array | None = None  # f32[N]: of the examples' scores, if the experiment has a gate
    present: jax.Array | None = None  # bool[N, modalities], in the tower's order: which the towers see; None: all
    labels: jax.Array | None = None  # i32[N, G]: of sequences, if the objective reads them; -1 is padding

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Batch:
        """From the dictionary that ``mmjax.data.pipeline`` yields."""
        image, text = (
            Provenance(
                ids=arrays[f"{side}_ids"],
                weight=arrays[f"{side}_weight"],
                group=arrays.get(f"{side}_group"),
                teacher=arrays.get(f"{side}_teacher"),
            )
            for side in ("image", "text")
        )
        return cls(
            images=dict(arrays["images"]),
            tokens=arrays["tokens"],
            image_source=image,
            text_source=text,
            quantile=arrays.get("quantile"),
            labels=arrays.get("labels"),
        )
