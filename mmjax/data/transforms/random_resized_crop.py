"""Random crop, resized to the model's size: Inception's (arXiv:1409.4842), as torchvision draws it."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from mmjax.data.pictures.resampling import Resample
from mmjax.data.sample import Crop
from mmjax.data.transforms.common.base import PositiveFraction, Ratio, Stage, check_interval

_ATTEMPTS = 10


class Transform:
    """Crops a box whose area is uniform in ``scale`` and whose aspect ratio is log-uniform in ``ratio``.

    A box that does not fit into the picture is drawn again; after ten attempts the largest central box with an allowed
    aspect ratio is used. Aligned modalities share the crop.

    Args:
      image_size: height and width of the view.
      scale: smallest and largest fraction of the picture's area; open_clip's (0.9, 1) keeps captions true, (0.08, 1)
        is ImageNet's.
      ratio: smallest and largest width / height.
      resample: ``fast`` (antialiased OpenCV on a JPEG decoded no larger than needed), ``bicubic`` or ``bilinear``
        (Pillow's), ``nearest``.
    """

    stage: ClassVar[Stage] = "geometry"

    def __init__(
        self,
        *,
        image_size: int = 224,
        scale: tuple[PositiveFraction, PositiveFraction] = (0.9, 1.0),
        ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3),
        resample: Resample = "fast",
    ):
        self._size = (image_size, image_size)
        self._scale = check_interval("scale", scale)
        self._ratio = check_interval("ratio", ratio)
        self._resample: Resample = resample

    def __call__(self, height: int, width: int, random: np.random.Generator) -> Crop:
        """The crop of a picture of that size."""
        top, left, crop_height, crop_width = self._box(height, width, random)
        return Crop(top, left, crop_height, crop_width, size=self._size, inner=self._size, resample=self._resample)

    def _box(self, height: int, width: int, random: np.random.Generator) -> tuple[int, int, int, int]:
        (smallest, largest), (low, high) = self._scale, self._ratio
        # All attempts in one draw: most crops of nearly the whole area do not fit into a square picture.
        for u, v in random.random((_ATTEMPTS, 2)).tolist():
            area = height * width * (smallest + (largest - smallest) * u)
            aspect = low * (high / low) ** v
            crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = int(random.integers(height - crop_height, endpoint=True))
                return top, int(random.integers(width - crop_width, endpoint=True)), crop_height, crop_width
        crop_height, crop_width = height, width
        if width / height < low:
            crop_height = max(round(width / low), 1)
        elif width / height > high:
            crop_width = max(round(height * high), 1)
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
