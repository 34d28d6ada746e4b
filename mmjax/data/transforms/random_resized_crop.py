"""A random part of the picture at the model's size: the crop of arXiv:1409.4842, by torchvision's law."""

from __future__ import annotations

import math
from typing import ClassVar, get_args

import numpy as np

from mmjax.core.config import ConfigError, choose
from mmjax.data.pictures.resampling import Resample
from mmjax.data.sample import Crop
from mmjax.data.transforms.base import Stage

_TRIES = 10


class Transform:
    """Draws an area in ``scale`` and the logarithm of a shape in ``ratio``, both uniformly, and a place for them.

    What does not fit into the picture is drawn anew; after ten times the largest central part whose shape is allowed is
    taken. Aligned modalities share the crop.

    Args:
      image_size: height and width of the view.
      scale: least and greatest part of the picture's area; open_clip's (0.9, 1) leaves captions true, (0.08, 1) is
        ImageNet's.
      ratio: least and greatest width / height.
      resample: ``fast`` (antialiased OpenCV on a JPEG decoded no larger than needed), ``bicubic`` or ``bilinear``
        (Pillow's), ``nearest``.
    """

    stage: ClassVar[Stage] = "geometry"

    def __init__(
        self,
        *,
        image_size: int = 224,
        scale: tuple[float, float] = (0.9, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        resample: Resample = "fast",
    ):
        if image_size < 1:
            raise ConfigError(f"image_size={image_size}: a number of pixels; set it to 1 or more")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ConfigError(f"scale={scale}: parts of the area, the smaller one first; set them between 0 and 1")
        if not 0 < ratio[0] <= ratio[1] < math.inf:
            raise ConfigError(f"ratio={ratio}: width / height, the smaller one first; set both greater than 0")
        self._size = (image_size, image_size)
        self._scale = scale
        self._ratio = ratio
        self._resample: Resample = choose(resample, get_args(Resample), path="resample")  # type: ignore[assignment]

    def __call__(self, height: int, width: int, random: np.random.Generator) -> Crop:
        """The part of a picture of that size."""
        top, left, tall, wide = self._box(height, width, random)
        return Crop(top, left, tall, wide, size=self._size, inner=self._size, resample=self._resample)

    def _box(self, height: int, width: int, random: np.random.Generator) -> tuple[int, int, int, int]:
        (least, most), (low, high) = self._scale, self._ratio
        # All tries in one draw: of square pictures most crops of nearly the whole area do not fit.
        for u, v in random.random((_TRIES, 2)).tolist():
            area = height * width * (least + (most - least) * u)
            shape = low * (high / low) ** v
            wide, tall = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < wide <= width and 0 < tall <= height:
                top = int(random.integers(height - tall, endpoint=True))
                return top, int(random.integers(width - wide, endpoint=True)), tall, wide
        tall, wide = height, width
        if width / height < low:
            tall = max(round(width / low), 1)
        elif width / height > high:
            wide = max(round(height * high), 1)
        return (height - tall) // 2, (width - wide) // 2, tall, wide
