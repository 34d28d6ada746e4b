"""Pictures without color."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mmjax.data.pictures import pixels
from mmjax.data.sample import Sample
from mmjax.data.transforms.base import Stage


class Transform:
    """Exchanges all three channels for the luma, 0.299 R + 0.587 G + 0.114 B.

    Captions that name colors become false: keep it rare, or leave it out for such data.

    Args:
      probability: that a sample is changed.
      modalities: the modalities that are, together.
      data_modalities: those there are.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(
        self,
        *,
        probability: float = 0.2,
        modalities: tuple[str, ...] = ("image",),
        data_modalities: tuple[str, ...] = ("image",),
    ):
        self._probability = pixels.probability("probability", probability)
        self._modalities = pixels.check_modalities(modalities, data_modalities)

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample, perhaps in gray."""
        if random.random() < self._probability:
            for name in self._modalities:
                sample.images[name] = pixels.gray(sample.images[name])
        return sample
