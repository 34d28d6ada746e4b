"""Random erasing (arXiv:1708.04896): a random rectangle of the picture is filled."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np

from mmjax.data.sample import Sample
from mmjax.data.transforms.common.base import (
    GrayLevel,
    PositiveFraction,
    Probability,
    Ratio,
    Stage,
    check_interval,
    check_modalities,
)

_ATTEMPTS = 10


class Transform:
    """Fills a random rectangle, the same in all ``modalities``.

    Its area is uniform in ``scale``, its height / width log-uniform in ``ratio`` and its position uniform. A rectangle
    that does not fit is drawn again; after ten attempts the picture is left as it is.

    Args:
      probability: of changing a sample.
      scale: smallest and largest fraction of the picture's area.
      ratio: smallest and largest height / width.
      value: ``random`` (noise for each pixel, the paper's best), ``mean`` (the picture's mean color) or a gray level.
      modalities: which modalities are changed.
      data_modalities: all modalities of the data.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(
        self,
        *,
        probability: Probability = 0.5,
        scale: tuple[PositiveFraction, PositiveFraction] = (0.02, 0.33),
        ratio: tuple[Ratio, Ratio] = (0.3, 1 / 0.3),
        value: Literal["random", "mean"] | GrayLevel = "random",
        modalities: tuple[str, ...] = ("image",),
        data_modalities: tuple[str, ...] = ("image",),
    ):
        self._probability = probability
        self._scale = check_interval("scale", scale)
        self._ratio = check_interval("ratio", ratio)
        self._value = value
        self._modalities = check_modalities(modalities, data_modalities)

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample with a filled rectangle, or as it is."""
        if random.random() >= self._probability:
            return sample
        height, width, _ = sample.images[self._modalities[0]].shape
        box = self._box(height, width, random)
        if box is not None:
            for name in self._modalities:
                x = sample.images[name].copy()
                x[box] = self._fill(x, x[box].shape, random)
                sample.images[name] = x
        return sample

    def _box(self, height: int, width: int, random: np.random.Generator) -> tuple[slice, slice] | None:
        low, high = (math.log(r) for r in self._ratio)
        for _ in range(_ATTEMPTS):
            area = height * width * random.uniform(*self._scale)
            aspect = math.exp(random.uniform(low, high))
            box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < box_height <= height and 0 < box_width <= width:
                top = int(random.integers(height - box_height, endpoint=True))
                left = int(random.integers(width - box_width, endpoint=True))
                return slice(top, top + box_height), slice(left, left + box_width)
        return None

    def _fill(self, x: np.ndarray, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray | int:
        if self._value == "random":
            return random.integers(0, 256, shape, np.uint8)
        if self._value == "mean":
            return np.floor(x.mean(axis=(0, 1)) + 0.5).astype(np.uint8)
        return int(self._value)
