"""Copy and paste: a random rectangle of a picture covers another place of the same picture."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from mmjax.data.sample import Sample
from mmjax.data.transforms.common.base import PositiveFraction, Probability, Stage, check_interval


class Transform:
    """Copies a rectangle to another place, the same ones in all modalities.

    It has the picture's aspect ratio, its area is uniform in ``scale``, and both places are uniform. Taken from the
    picture itself, it needs no masks and adds nothing that the caption would have to name. Pasting objects of other
    pictures by their boxes is ``culture_mixup``.

    Args:
      probability: of changing a sample.
      scale: smallest and largest fraction of the picture's area.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(
        self,
        *,
        probability: Probability = 0.5,
        scale: tuple[PositiveFraction, PositiveFraction] = (0.02, 0.1),
    ):
        self._probability = probability
        self._scale = check_interval("scale", scale)

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample with a rectangle twice, or as it is."""
        if random.random() >= self._probability:
            return sample
        height, width, _ = next(iter(sample.images.values())).shape
        side = math.sqrt(random.uniform(*self._scale))
        h, w = max(round(side * height), 1), max(round(side * width), 1)
        (top, left), (to_top, to_left) = random.integers([height - h, width - w], endpoint=True, size=(2, 2)).tolist()
        for name, x in sample.images.items():
            pasted = x.copy()
            pasted[to_top : to_top + h, to_left : to_left + w] = x[top : top + h, left : left + w]
            sample.images[name] = pasted
        return sample
