"""What a transform is. A module of this folder has one class ``Transform``; its ``stage`` says which of these it is.

Stages run in this order, transforms of one stage in the order of the configuration:

``captions``  which captions an example has and how likely each is, before any is chosen
``geometry``  which part of the picture is seen, and its size; at most one, and pictures are decoded by it
``sample``    changes to one example's pixels and chosen captions
``batch``     changes to rows of tokens and pixels, alone or in pairs

A constructor takes keyword arguments with defaults. Arguments of these names are the program's and no options:
``image_size`` (int, pixels), ``token_format`` (``TokenFormat``) and ``data_modalities`` (tuple of names).

Randomness: each call gets a generator of its own, a function of the seed, the transform's name and the number of the
row since the start of training. So results depend neither on processes and workers nor on the other transforms, and
``random`` may be drawn from freely.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, Protocol

import numpy as np

from mmjax.data.sample import BatchRows, Crop, Sample

Stage = Literal["captions", "geometry", "sample", "batch"]
STAGES: tuple[Stage, ...] = ("captions", "geometry", "sample", "batch")


class CaptionTransform(Protocol):
    """Gives a sample its captions and their weights; pictures are not decoded yet."""

    stage: ClassVar[Stage]

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample, changed or another."""


class GeometryTransform(Protocol):
    """Chooses the part of a picture of ``height`` and ``width`` to be seen; aligned modalities share the choice."""

    stage: ClassVar[Stage]

    def __call__(self, height: int, width: int, random: np.random.Generator) -> Crop:
        """A box within the picture, and the view it becomes."""


class SampleTransform(Protocol):
    """Changes pixels (all modalities have one height and width) and the captions that were chosen."""

    stage: ClassVar[Stage]

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample, changed or another."""


class BatchTransform(Protocol):
    """Changes rows. ``partners`` names, of the global batch's rows in ``host_rows``, those combined with another."""

    stage: ClassVar[Stage]

    def partners(self, *, batch_size: int, group: int, host_rows: range) -> Mapping[int, int]:
        """Row to partner row, numbers in the global batch; neighbors in a ``group`` were drawn together."""

    def __call__(self, rows: BatchRows, random: Callable[[int], np.random.Generator]) -> BatchRows:
        """New rows; ``random(row number)`` is that row's own generator. ``rows.partner`` follows ``partners``."""
