"""Brightness, contrast, saturation and hue, changed at random."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.pictures import pixels
from mmjax.data.sample import Sample
from mmjax.data.transforms.base import Stage


class Transform:
    """Applies the four changes in a random order; the modalities of ``modalities`` share order and strengths.

    A strength s means a factor drawn uniformly from 1 - s (at least 0) to 1 + s, for hue a turn of the color wheel
    from -s to s. Captions that name colors stay true only with little hue.

    Args:
      brightness: strength, 0 or more.
      contrast: strength, 0 or more.
      saturation: strength, 0 or more.
      hue: strength, up to 0.5.
      probability: that a sample is changed at all.
      modalities: the modalities that are changed.
      data_modalities: those there are.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(
        self,
        *,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        probability: float = 1.0,
        modalities: tuple[str, ...] = ("image",),
        data_modalities: tuple[str, ...] = ("image",),
    ):
        for name, value, most in (
            ("brightness", brightness, np.inf),
            ("contrast", contrast, np.inf),
            ("saturation", saturation, np.inf),
            ("hue", hue, 0.5),
        ):
            if not 0 <= value <= most or value == np.inf:
                range_ = f"from 0 to {most}" if most < np.inf else "to 0 or more"
                raise ConfigError(f"{name}={value}: a strength; set it {range_}")
        self._factors = (brightness, contrast, saturation)
        self._hue = hue
        self._probability = pixels.probability("probability", probability)
        self._modalities = pixels.check_modalities(modalities, data_modalities)

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample, perhaps in other colors."""
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
        wanted = [strength > 0 for strength in (*self._factors, self._hue)]
        for at in random.permutation(len(changes)).tolist():
            if wanted[at]:
                for name in self._modalities:
                    sample.images[name] = changes[at](sample.images[name])
        return sample
