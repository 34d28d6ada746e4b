"""What all objectives over a matrix of logits share: targets, and how the matrix is walked."""

from __future__ import annotations

import abc
import dataclasses
from typing import Literal

import jax
from jax.sharding import NamedSharding

from mmjax.core.config import ConfigError
from mmjax.core.row_sharding import num_shards
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives.common.sweep import Sweep
from mmjax.objectives.common.targets import Labelling, Labels

DENSE_PAIRS = 2**22
"""Up to so many pairs a device ``auto`` keeps the whole matrix."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base(abc.ABC):
    """An objective; ``Objective`` of a module derives from it.

    ``impl`` says how the matrix of logits is held, with the same value and gradients:

    * ``dense``: as a whole; the compiler divides it among devices as it sees fit.
    * ``chunked``: in tiles of ``chunk`` rows by ``chunk`` columns, made again for the gradient; every device compares
      its images with all texts.
    * ``ring``: in tiles, and texts go from device to device: memory a device depends on its own rows alone.
    * ``auto``: ``dense`` while that is small; then ``ring`` on several devices and ``chunked`` on one.
    """

    targets: Labelling = "provenance"
    mask_partners: bool = False
    impl: Literal["auto", "dense", "chunked", "ring"] = "auto"
    chunk: int = 1024
    row_sharding: NamedSharding | None = None  # of both sides, from whoever made the mesh; None: all on one device

    def __post_init__(self) -> None:
        if self.mask_partners and self.targets == "provenance":
            raise ConfigError(
                "objective.mask_partners=True: with targets='provenance' partners are positives; use targets='identity'"
            )
        if self.chunk < 1:
            raise ConfigError(
                f"objective.chunk={self.chunk}: a tile has at least one row; leave it out for the default"
            )

    @abc.abstractmethod
    def __call__(
        self,
        image: jax.Array,  # f32[N, D], unit rows
        text: jax.Array,  # f32[M, D], unit rows
        *,
        image_source: Provenance,
        text_source: Provenance,
        scale: jax.Array,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """The loss f32[] and metrics, which have no gradient."""

    def chosen(self, n: int, m: int, shards: int | None = None) -> Literal["dense", "chunked", "ring"]:
        """What ``impl`` comes to for ``n`` images, ``m`` texts and ``shards`` devices (None: ``row_sharding`` says)."""
        if self.impl != "auto":
            return self.impl
        shards = num_shards(self.row_sharding) if shards is None else shards
        if n * m <= DENSE_PAIRS * shards:
            return "dense"
        return "ring" if shards > 1 else "chunked"

    def sweep(self, n: int, m: int) -> Sweep | None:
        """The walk over the matrix of so many rows, or None where it is held as a whole."""
        impl = self.chosen(n, m)
        return None if impl == "dense" else Sweep(chunk=self.chunk, ring=impl == "ring", row_sharding=self.row_sharding)

    def labels(self, source: Provenance) -> Labels:
        """What the loss uses of where rows come from."""
        return Labels.of(source, targets=self.targets, mask_partners=self.mask_partners)
