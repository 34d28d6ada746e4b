"""Random erasing (arXiv:1708.04896): a rectangle of the picture is lost."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.pictures import pixels
from mmjax.data.sample import Sample
from mmjax.data.transforms.base import Stage

_TRIES = 10


class Transform:
    """Fills a random rectangle; a shape that does not fit is drawn anew, and after ten times the picture stays.

    Its area is uniform in ``scale`` of the picture's, the logarithm of height / width uniform in ``ratio``, its place
    uniform. The modalities of ``modalities`` lose the same rectangle.

    Args:
      probability: that a sample loses one.
      scale: least and greatest part of the area.
      ratio: least and greatest height / width.
      value: ``random`` (noise, each pixel on its own, the paper's best), ``mean`` (the picture's mean color) or a gray
        level.
      modalities: the modalities that are changed.
      data_modalities: those there are.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(
        self,
        *,
        probability: float = 0.5,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 1 / 0.3),
        value: Literal["random", "mean"] | int = "random",
        modalities: tuple[str, ...] = ("image",),
        data_modalities: tuple[str, ...] = ("image",),
    ):
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ConfigError(f"scale={scale}: parts of the area, the smaller one first; set them between 0 and 1")
        if not 0 < ratio[0] <= ratio[1] < math.inf:
            raise ConfigError(f"ratio={ratio}: height / width, the smaller one first; set both greater than 0")
        if value not in ("random", "mean") and not (type(value) is int and 0 <= value <= 255):
            raise ConfigError(f"value={value!r}: use 'random', 'mean' or a gray level from 0 to 255")
        self._probability = pixels.probability("probability", probability)
        self._scale = scale
        self._ratio = ratio
        self._value = value
        self._modalities = pixels.check_modalities(modalities, data_modalities)

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample, perhaps with something missing."""
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
        for _ in range(_TRIES):
            area = height * width * random.uniform(*self._scale)
            shape = math.exp(random.uniform(low, high))
            tall, wide = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < tall <= height and 0 < wide <= width:
                top = int(random.integers(height - tall, endpoint=True))
                left = int(random.integers(width - wide, endpoint=True))
                return slice(top, top + tall), slice(left, left + wide)
        return None

    def _fill(self, x: np.ndarray, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray | int:
        if self._value == "random":
            return random.integers(0, 256, shape, np.uint8)
        if self._value == "mean":
            return np.floor(x.mean(axis=(0, 1)) + 0.5).astype(np.uint8)
        return int(self._value)
