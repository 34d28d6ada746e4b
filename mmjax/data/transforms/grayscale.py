"""Random conversion to grayscale."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mmjax.data.pictures import pixels
from mmjax.data.sample import Sample
from mmjax.data.transforms.common.base import Probability, Stage, check_modalities


class Transform:
    """Replaces all three channels by the luma, 0.299 R + 0.587 G + 0.114 B.

    Captions that name colors become false: use a small probability, or none, for such data.

    Args:
      probability: of changing a sample.
      modalities: which modalities are changed, all or none of them.
      data_modalities: all modalities of the data.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(
        self,
        *,
        probability: Probability = 0.2,
        modalities: tuple[str, ...] = ("image",),
        data_modalities: tuple[str, ...] = ("image",),
    ):
        self._probability = probability
        self._modalities = check_modalities(modalities, data_modalities)

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample in gray, or as it is."""
        if random.random() < self._probability:
            for name in self._modalities:
                sample.images[name] = pixels.gray(sample.images[name])
        return sample
