"""The whole picture, or its center, at the model's size: what evaluation does."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import numpy as np

from mmjax.core.config import ConfigError, choose
from mmjax.data.pictures.resampling import Resample
from mmjax.data.sample import Crop
from mmjax.data.transforms.base import Stage

Mode = Literal["shortest", "squash", "longest"]
Centering = Literal["torchvision", "transformers"]


class Transform:
    """Resizes in the way that the model was trained for; nothing is drawn.

    ``shortest`` (OpenAI's and most CLIPs): the shorter side becomes ``image_size``, the longer one in proportion,
    rounded down, and the center of that is kept. ``squash`` (SigLIP): height and width each become ``image_size``.
    ``longest``: the longer side does, the shorter one in proportion, and the rest is filled up evenly. Only what is
    seen is computed, to the gray levels that resizing the whole and then cropping would give.

    Args:
      image_size: height and width of the view.
      mode: ``shortest``, ``squash`` or ``longest``.
      resample: ``bicubic`` or ``bilinear`` as Pillow, ``nearest``, or ``fast``, which is near to bicubic only.
      fill: gray level of what ``longest`` adds.
      centering: where the center is when an odd number of pixels is left over: ``torchvision`` (and open_clip) rounds
        half of it to the even number, ``transformers`` down.
    """

    stage: ClassVar[Stage] = "geometry"

    def __init__(
        self,
        *,
        image_size: int = 224,
        mode: Mode = "shortest",
        resample: Resample = "bicubic",
        fill: int = 0,
        centering: Centering = "torchvision",
    ):
        if image_size < 1:
            raise ConfigError(f"image_size={image_size}: a number of pixels; set it to 1 or more")
        if not 0 <= fill <= 255:
            raise ConfigError(f"fill={fill}: a gray level; set it from 0 to 255")
        self._size = image_size
        self._mode = choose(mode, get_args(Mode), path="mode")
        self._resample: Resample = choose(resample, get_args(Resample), path="resample")  # type: ignore[assignment]
        self._fill = fill
        self._centering = choose(centering, get_args(Centering), path="centering")
        if fill and mode != "longest":
            raise ConfigError(f"fill={fill}: mode={mode!r} adds nothing to a picture; leave it out or use 'longest'")

    def __call__(self, height: int, width: int, random: np.random.Generator) -> Crop:
        """The part of a picture of that size."""
        size = (self._size, self._size)
        whole = Crop(0, 0, height, width, size=size, inner=size, resample=self._resample, fill=self._fill)
        if self._mode == "squash":
            return whole
        if self._mode == "longest":
            ratio = max(height, width) / self._size
            tall, wide = max(round(height / ratio), 1), max(round(width / ratio), 1)
            return whole._replace(inner=(tall, wide), offset=((self._size - tall) // 2, (self._size - wide) // 2))
        short, long = min(height, width), max(height, width)
        longer = int(self._size * long / short)
        tall, wide = (longer, self._size) if height > width else (self._size, longer)
        down, across = height / tall, width / wide
        return whole._replace(
            top=self._middle(tall) * down,
            left=self._middle(wide) * across,
            height=self._size * down,
            width=self._size * across,
        )

    def _middle(self, length: int) -> int:
        left_over = length - self._size
        return round(left_over / 2) if self._centering == "torchvision" else left_over // 2
