"""The interface and the options that all objectives share."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal

import jax
from jax.sharding import NamedSharding

from mmjax.core.config import ConfigError, Ge
from mmjax.core.row_sharding import num_shards
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives.common.sweep import Sweep
from mmjax.objectives.common.targets import Labeling, Labels

DENSE_PAIRS = 2**22
"""``impl="auto"`` keeps the whole matrix of logits up to this many pairs a device."""

Implementation = Literal["dense", "chunked", "ring"]

TextGroups = Literal["example", "kind", "place"]
"""``example``: a text has the group of its image; ``kind``: a hard negative has its kind, and a caption none.

``place``: a caption has its place among those of its image, and a hard negative that of the caption it is false for
(the first one, if none); equal texts are known by it, too (``mmjax.core.groups.place_number``).
"""

State = dict[str, jax.Array]
"""What an objective carries from step to step, by name. Matrices whose rows divide evenly are split over devices."""

CARRIED = "carried"
"""Where the metrics of an objective hold arrays for ``next_state``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base(abc.ABC):
    """An objective; the class ``Objective`` of every module derives from it.

    Args:
        targets: ``provenance``: all sources of a row are positives, by their weights; ``identity``: the first alone.
        mask_partners: Leave out pairs that share an original without being positives; for ``identity``.
        impl: How the matrix of logits is computed, with the same value and gradients:

            * ``dense``: as a whole; the compiler divides it among devices.
            * ``chunked``: in tiles of ``chunk`` by ``chunk``, computed again for the gradient; every device compares
              its images with all texts.
            * ``ring``: in tiles, and texts travel from device to device: memory depends on a device's own rows alone.
            * ``auto``: ``dense`` while that is small; then ``ring`` on several devices and ``chunked`` on one.
        chunk: The largest side of a tile.
        row_sharding: Of both sides, set by the program; None: one device.
        embed_dim: Of the embeddings, likewise.
    """

    model_options: ClassVar[Mapping[str, float]] = {}
    """What ``mmjax compare`` sets in the section ``model`` of a recipe with this objective, if that has no bias."""

    needs_negatives: ClassVar[bool] = False
    """Whether it is made for false captions, and says little more than ``contrastive`` without them."""

    needs_teacher: ClassVar[bool] = False
    """Whether it is ``contrastive`` without embeddings of a teacher."""

    uses_unlabeled: ClassVar[bool] = False
    """Whether images of zero weight are images without a caption, and not negatives for all texts."""

    targets: Labeling = "provenance"
    mask_partners: bool = False
    impl: Literal["auto", "dense", "chunked", "ring"] = "auto"
    chunk: Annotated[int, Ge(1)] = 1024
    row_sharding: NamedSharding | None = None
    embed_dim: int | None = None

    def __post_init__(self) -> None:
        if self.mask_partners and self.targets == "provenance":
            raise ConfigError(
                "objective.mask_partners=True: with targets='provenance' partners are positives; use targets='identity'"
            )

    @abc.abstractmethod
    def __call__(
        self,
        image: jax.Array,
        text: jax.Array,
        *,
        image_source: Provenance,
        text_source: Provenance,
        scale: jax.Array,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """Compares all images with all texts.

        Args:
            image: f32[N, D], unit rows.
            text: f32[M, D], unit rows.
            image_source: What the images are made of.
            text_source: What the texts are made of.
            scale: f32[], multiplies the cosines.
            bias: f32[], added to the logits; None: no bias.

        Returns:
            The loss f32[], and metrics, which have no gradient.
        """

    @property
    def modules(self) -> tuple[str, ...]:
        """Sections of the model beside its towers that it runs: it is then called with ``tokens``, a ``TowerTokens``.

        A view of an augmentation has tokens if it is made before pooling, or else ``tokens`` is None.
        """
        return ()

    def check_model(self, model: Any, *, augment: Collection[str]) -> None:  # noqa: B027  # most accept all
        """Raises ConfigError if it cannot train this model, a ``ClipConfig``, with augmentations of these names."""

    @property
    def momentum_decay(self) -> float | None:
        """Of a moving average of the model that it compares with; None: it needs none.

        It is then called with ``momentum``, a ``MomentumFeatures``, for the clean rows of a batch.
        """
        return None

    @property
    def text_groups(self) -> TextGroups | None:
        """Which groups of texts it reads from ``Provenance.group``; None: it reads no groups."""
        return None

    def init_state(self) -> State:
        """The state before the first step. If it is not empty, ``__call__`` takes it as ``state``; None: this one."""
        return {}

    def next_state(self, state: State, metrics: Metrics) -> State:
        """The state after a step, of the state before it and of the metrics of the clean rows.

        What stands in ``metrics`` under ``CARRIED`` is for this function alone.
        """
        return state

    def choose_impl(self, n: int, m: int, shards: int | None = None) -> Implementation:
        """The implementation for ``n`` images and ``m`` texts over ``shards`` devices (None: of ``row_sharding``)."""
        if self.impl != "auto":
            return self.impl
        shards = num_shards(self.row_sharding) if shards is None else shards
        if n * m <= DENSE_PAIRS * shards:
            return "dense"
        return "ring" if shards > 1 else "chunked"

    def make_sweep(self, n: int, m: int) -> Sweep | None:
        """The pass over tiles for ``n`` images and ``m`` texts; None: the matrix is held as a whole."""
        impl = self.choose_impl(n, m)
        return None if impl == "dense" else Sweep(chunk=self.chunk, ring=impl == "ring", row_sharding=self.row_sharding)

    def make_labels(self, source: Provenance) -> Labels:
        """What the loss uses of ``source``."""
        return Labels.from_provenance(source, targets=self.targets, mask_partners=self.mask_partners)
