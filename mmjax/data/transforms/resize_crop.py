"""Deterministic resize and center crop to the model's size, as evaluation needs it."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.pictures.resampling import Resample
from mmjax.data.sample import Crop
from mmjax.data.transforms.common.base import GrayLevel, Stage

Mode = Literal["shortest", "squash", "longest"]
Centering = Literal["torchvision", "transformers"]


class Transform:
    """Resizes and crops in one of three ways:

    ``shortest`` (most CLIP models): the shorter side becomes ``image_size``, the longer one in proportion, rounded
    down, and its center is kept. ``squash`` (SigLIP): both sides become ``image_size``. ``longest``: the longer side
    becomes ``image_size``, the shorter one in proportion, and the rest is padded evenly. Only the visible region is
    computed, with the same result as resizing everything and then cropping.

    Args:
      image_size: height and width of the view.
      mode: ``shortest``, ``squash`` or ``longest``.
      resample: ``bicubic`` or ``bilinear`` as in Pillow, ``nearest``, or ``fast``, which is only close to bicubic.
      fill: gray level of the padding of ``longest``.
      centering: how half of an odd number of pixels is rounded: to the even number as in ``torchvision`` and open_clip,
        or down as in ``transformers``.
    """

    stage: ClassVar[Stage] = "geometry"

    def __init__(
        self,
        *,
        image_size: int = 224,
        mode: Mode = "shortest",
        resample: Resample = "bicubic",
        fill: GrayLevel = 0,
        centering: Centering = "torchvision",
    ):
        self._size = image_size
        self._mode = mode
        self._resample: Resample = resample
        self._fill = fill
        self._centering = centering
        if fill and mode != "longest":
            raise ConfigError(f"fill={fill}: mode={mode!r} adds no padding; leave it out or use 'longest'")

    def __call__(self, height: int, width: int, random: np.random.Generator) -> Crop:
        """The crop of a picture of that size."""
        size = (self._size, self._size)
        whole = Crop(0, 0, height, width, size=size, inner=size, resample=self._resample, fill=self._fill)
        if self._mode == "squash":
            return whole
        if self._mode == "longest":
            ratio = max(height, width) / self._size
            new_height, new_width = max(round(height / ratio), 1), max(round(width / ratio), 1)
            return whole._replace(
                inner=(new_height, new_width), offset=((self._size - new_height) // 2, (self._size - new_width) // 2)
            )
        short, long = min(height, width), max(height, width)
        longer = int(self._size * long / short)
        new_height, new_width = (longer, self._size) if height > width else (self._size, longer)
        down, across = height / new_height, width / new_width
        return whole._replace(
            top=self._middle(new_height) * down,
            left=self._middle(new_width) * across,
            height=self._size * down,
            width=self._size * across,
        )

    def _middle(self, length: int) -> int:
        left_over = length - self._size
        return round(left_over / 2) if self._centering == "torchvision" else left_over // 2
