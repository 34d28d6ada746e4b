"""Random changes of brightness, contrast, saturation and hue."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np

from mmjax.core.config import Between, Ge
from mmjax.data.pictures import pixels
from mmjax.data.sample import Sample
from mmjax.data.transforms.common.base import Probability, Stage, check_modalities


class Transform:
    """Applies the four changes in random order; all ``modalities`` share the order and the strengths.

    A strength s means a factor drawn uniformly from 1 - s (at least 0) to 1 + s; for hue, a rotation of the color wheel
    drawn from -s to s turns. Captions that name colors stay true only if the hue strength is small.

    Args:
      brightness: strength, 0 or more.
      contrast: strength, 0 or more.
      saturation: strength, 0 or more.
      hue: strength, up to 0.5.
      probability: of changing a sample at all.
      modalities: which modalities are changed.
      data_modalities: all modalities of the data.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(
        self,
        *,
        brightness: Annotated[float, Ge(0)] = 0.4,
        contrast: Annotated[float, Ge(0)] = 0.4,
        saturation: Annotated[float, Ge(0)] = 0.4,
        hue: Annotated[float, Between(0, 0.5)] = 0.1,
        probability: Probability = 1.0,
        modalities: tuple[str, ...] = ("image",),
        data_modalities: tuple[str, ...] = ("image",),
    ):
        self._factors = (brightness, contrast, saturation)
        self._hue = hue
        self._probability = probability
        self._modalities = check_modalities(modalities, data_modalities)

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample in other colors, or as it is."""
        if random.random() >= self._probability:
            return sample
        factors = [random.uniform(max(1 - s, 0.0), 1 + s) for s in self._factors]
        turns = random.uniform(-self._hue, self._hue)
        changes = [
            lambda x: pixels.brightness(x, factors[0]),
            lambda x: pixels.contrast(x, factors[1]),
            lambda x: pixels.saturation(x, factors[2]),
            lambda x: pixels.hue(x, turns),
        ]
        enabled = [strength > 0 for strength in (*self._factors, self._hue)]
        for i in random.permutation(len(changes)).tolist():
            if enabled[i]:
                for name in self._modalities:
                    sample.images[name] = changes[i](sample.images[name])
        return sample
