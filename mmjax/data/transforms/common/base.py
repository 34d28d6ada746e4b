"""The interface of transforms: four stages between a source's example and a batch.

A transform is the class ``Transform`` of a module; its ``stage`` says which of the protocols below it follows.
Stages run in this order, transforms of one stage in the order of the configuration:

``captions``  which captions an example has, and their probabilities, before any is sampled
``geometry``  the region and size of the crop; at most one transform, and pictures are decoded by it
``sample``    changes to one example's pixels and sampled captions
``batch``     changes to rows of tokens and pixels, alone or in pairs

The constructor's arguments are keywords with defaults: they are the options of the configuration. Three names are
reserved for what the program passes in: ``image_size`` (int, pixels), ``token_format`` (``TokenFormat``) and
``data_modalities`` (tuple of names).

Each call gets its own random generator, a function of the seed, the transform's name and the number of the row since
the start of training. So results depend neither on processes and workers nor on the other transforms, and a transform
may draw as much as it likes.

A complete transform::

    >>> import dataclasses
    >>> class Transform:
    ...     "Appends ``word`` to a caption with some ``probability``."
    ...
    ...     stage = "sample"
    ...
    ...     def __init__(self, *, word: str = "photo", probability: float = 0.5):
    ...         self.word, self.probability = word, probability
    ...
    ...     def __call__(self, sample, random):
    ...         captions = [
    ...             f"{caption} {self.word}" if random.random() < self.probability else caption
    ...             for caption in sample.captions
    ...         ]
    ...         return dataclasses.replace(sample, captions=captions)

In a file ``suffix.py`` of your own package, ``data.transforms`` names it ``"my_package.suffix"``, with options such as
``{"word": "drawing"}``. On its own it transforms a ``Sample``::

    >>> from mmjax.data.sample import Sample
    >>> suffix = Transform(word="drawing", probability=1.0)
    >>> suffix(Sample(id=0, key="0", captions=["a cat"]), np.random.default_rng(0)).captions
    ['a cat drawing']
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Protocol

import numpy as np

from mmjax.core.config import Between, ConfigError, Gt
from mmjax.data.sample import BatchRows, Crop, Sample

Stage = Literal["captions", "geometry", "sample", "batch"]
STAGES: tuple[Stage, ...] = ("captions", "geometry", "sample", "batch")

Probability = Annotated[float, Between(0, 1)]
Alpha = Annotated[float, Gt(0)]
"""The parameter of a distribution Beta(α, α); 1 is uniform, small values are near 0 or 1."""
GrayLevel = Annotated[int, Between(0, 255)]
Fraction = Annotated[float, Between(0, 1)]
PositiveFraction = Annotated[float, Gt(0), Between(0, 1)]
Ratio = Annotated[float, Gt(0)]


class CaptionTransform(Protocol):
    """Gives a sample its captions and their weights; pictures are not decoded yet."""

    stage: ClassVar[Stage]

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """Returns the same sample, changed, or a new one."""


class GeometryTransform(Protocol):
    """Chooses the region of a picture that becomes the view; aligned modalities share it."""

    stage: ClassVar[Stage]

    def __call__(self, height: int, width: int, random: np.random.Generator) -> Crop:
        """Returns a box within the picture of that size, and the size of the view."""


class SampleTransform(Protocol):
    """Changes pixels and the sampled captions of one example; all modalities have the same height and width."""

    stage: ClassVar[Stage]

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """Returns the same sample, changed, or a new one."""


class BatchTransform(Protocol):
    """Changes rows of a batch, each alone or together with a partner row.

    It may also have ``combine_texts(sample, partner, step, random) -> Sample``, which is called for every row before
    its captions and negatives become tokens; a row without a partner gets None. ``joins_captions = True`` says that
    captions become as long as two, so that a start can say if the text tower is too short for them, and
    ``published_targets = "identity"`` that its paper has other targets than those by provenance.
    """

    stage: ClassVar[Stage]

    def partners(self, *, batch_size: int, group: int, host_rows: range) -> Mapping[int, int]:
        """Chooses the rows to combine.

        Args:
          batch_size: rows of the global batch.
          group: how many neighboring rows were drawn together.
          host_rows: this process's rows of the global batch.

        Returns:
          Row to partner row, for those of ``host_rows`` that have a partner; row numbers of the global batch.
        """

    def __call__(self, rows: BatchRows, random: Callable[[int], np.random.Generator]) -> BatchRows:
        """Returns new rows; ``random(row number)`` is a row's own generator, ``rows.partner`` follows ``partners``."""


def check_modalities(modalities: tuple[str, ...], data_modalities: tuple[str, ...]) -> tuple[str, ...]:
    """``modalities``, if each of them is one of ``data_modalities`` and none comes twice."""
    if not modalities or len(set(modalities)) != len(modalities) or not set(modalities) <= set(data_modalities):
        known = ", ".join(data_modalities)
        raise ConfigError(f"modalities={tuple(modalities)}: name one or more of {known}, each once")
    return tuple(modalities)


def check_interval(name: str, interval: tuple[float, float]) -> tuple[float, float]:
    """``interval``, if its smaller number comes first."""
    if interval[0] > interval[1]:
        raise ConfigError(f"{name}={interval}: the smaller number must come first")
    return interval


def normalize_weights(weights: Sequence[float] | None, *, count: int, each: str) -> list[float]:
    """``weights`` divided by their sum, or ``count`` equal ones if None; errors say that ``each`` needs one."""
    if weights is None:
        return [1 / count] * count
    total = math.fsum(weights)
    if len(weights) != count or not all(weight >= 0 for weight in weights) or not 0 < total < math.inf:
        raise ConfigError(f"weights={tuple(weights)}: give {count} weights, one for {each}, not all of them 0")
    return [weight / total for weight in weights]
