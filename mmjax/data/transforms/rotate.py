"""Rotations by a small random angle."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np

from mmjax.core.config import Between
from mmjax.data.pictures import pixels
from mmjax.data.sample import Sample
from mmjax.data.transforms.common.base import GrayLevel, Probability, Stage


class Transform:
    """Turns all modalities of a picture together about their center, with bilinear interpolation.

    The angle is uniform. Captions stay as they are: up to about 15 degrees left remains left. Boxes in ``fields`` still
    refer to the picture before, so transforms that need them must come first.

    Args:
      probability: of changing a sample.
      degrees: the largest angle to either side.
      fill: gray level of pixels from outside the picture, or ``edge`` for that of the nearest pixel.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(
        self,
        *,
        probability: Probability = 0.5,
        degrees: Annotated[float, Between(0, 180)] = 15.0,
        fill: Literal["edge"] | GrayLevel = "edge",
    ):
        self._probability = probability
        self._degrees = degrees
        self._fill = None if fill == "edge" else int(fill)

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample, turned or as it is."""
        if random.random() >= self._probability:
            return sample
        angle = math.radians(random.uniform(-self._degrees, self._degrees))
        cosine, sine = math.cos(angle), math.sin(angle)
        matrix = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0]])
        for name, x in sample.images.items():
            sample.images[name] = pixels.warp_affine(x, matrix, self._fill).reshape(x.shape)
        return sample
