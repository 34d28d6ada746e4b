"""The values that cross module borders: batches and where their rows come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

Metrics = dict[str, Any]
"""Slash-keys to scalars, e.g. ``{"loss": f32[], "logit_scale": f32[]}``."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Which original examples each row of images (or texts) is made of.

    The contrastive target of image ``i`` and text ``j`` follows from the two sides' provenance:
    ``S_ij = Σ_k Σ_l w_ik · v_jl · [id_ik == id_jl]``.

    A row of zero weight is a negative for everybody and has no loss of its own; a row whose first id is
    negative is padding and takes no part at all.
    """

    ids: jax.Array  # i32[B, K]
    weight: jax.Array  # f32[B, K]

    @property
    def valid(self) -> jax.Array:
        """bool[B]: False for padding."""
        return self.ids[:, 0] >= 0

    @classmethod
    def from_ids(cls, ids: jax.Array) -> Provenance:
        """Clean rows: ``ids`` i32[B], each made of one example alone."""
        return cls(ids=ids[:, None], weight=(ids >= 0).astype(jnp.float32)[:, None])

    def identity(self) -> Provenance:
        """Keeps the first source of each row only: the labelling of papers that ignore what was mixed in.

        It counts in full, however little of it the row holds; a row without any weight stays without.
        """
        weighs = jnp.any(self.weight > 0, axis=1, keepdims=True)
        return Provenance(ids=self.ids[:, :1], weight=weighs.astype(jnp.float32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """One global batch of N images and M texts; N and M may differ."""

    images: dict[str, jax.Array]  # modality -> u8[N, H, W, C]
    tokens: jax.Array  # i32[M, L]
    image_source: Provenance  # of N rows
    text_source: Provenance  # of M rows

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Batch:
        """From the flat dictionary that the data pipeline yields (see ``mmjax.data.pipeline``)."""
        return cls(
            images=dict(arrays["images"]),
            tokens=arrays["tokens"],
            image_source=Provenance(ids=arrays["image_ids"], weight=arrays["image_weight"]),
            text_source=Provenance(ids=arrays["text_ids"], weight=arrays["text_weight"]),
        )
