"""CutSwitch between two renderings of one picture, for data with a single modality."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.sample import Sample
from mmjax.data.transforms.common.base import Alpha, Fraction, Probability, Stage
from mmjax.data.transforms.common.boxes import random_box

_GRAY = np.array([0.299, 0.587, 0.114])


class Light(NamedTuple):
    """Brightness, contrast and saturation factors; 1 leaves a picture as it is."""

    brightness: float
    contrast: float
    saturation: float


class Transform:
    """Renders a picture twice, with different light, and puts a block of the second rendering into the first.

    This is an adaptation and not the paper's method, which exchanges blocks between sensors (see ``cutswitch``). The
    two renderings are aligned, so nothing of the scene is lost or moved, and captions stay as they are. Modalities
    share the box and the factors. Every sample gets a new light; ``probability`` is that of a block.

    Args:
      probability: of inserting the second rendering's block.
      alpha: the box covers ``1 - λ`` of the picture before it is clipped at the borders, with ``λ ~ Beta(α, α)``.
      brightness: the factor is uniform in 1 ± this; black stays black.
      contrast: the same, relative to the picture's mean gray.
      saturation: the same, relative to each pixel's gray.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(
        self,
        *,
        probability: Probability = 0.5,
        alpha: Alpha = 1.0,
        brightness: Fraction = 0.4,
        contrast: Fraction = 0.4,
        saturation: Fraction = 0.4,
    ):
        self._spread = Light(brightness, contrast, saturation)
        if not any(self._spread):
            raise ConfigError("brightness=0, contrast=0, saturation=0: both views are the same; set one above 0")
        self._probability, self._alpha = probability, alpha

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample in another light, with or without a block of a third."""
        first, second = (Light(*(1 + np.array(self._spread) * random.uniform(-1, 1, 3)).tolist()) for _ in range(2))
        images = {name: relight(picture, first) for name, picture in sample.images.items()}
        if random.random() < self._probability:
            height, width = next(iter(images.values())).shape[:2]
            block = random_box(height, width, alpha=self._alpha, random=random).slices
            for name, picture in sample.images.items():
                images[name][block] = relight(picture, second, block)
        return dataclasses.replace(sample, images=images)


def relight(picture: np.ndarray, light: Light, block: tuple[slice, slice] = (slice(None), slice(None))) -> np.ndarray:
    """The ``block`` of u8[H, W, 3] in that light, rounded and clipped once at the end::

    y = brightness · (contrast · x + (1 - contrast) · mean gray),  saturation · y + (1 - saturation) · gray(y)
    """
    height, width = picture.shape[:2]
    # Rows first: numpy is twenty times slower over both axes at once, because the last axis has three entries.
    total = picture.reshape(height, -1).sum(axis=0, dtype=np.uint32).reshape(-1, 3).sum(axis=0, dtype=np.uint64)
    mean = float(total @ _GRAY) / (height * width)
    to_gray = light.saturation * np.eye(3) + (1 - light.saturation) * _GRAY[:, None]
    part = picture[block]
    x = part.reshape(-1, 3).astype(np.float32) @ (light.brightness * light.contrast * to_gray).astype(np.float32)
    x += np.float32(light.brightness * (1 - light.contrast) * mean + 0.5)
    np.clip(x, 0, 255.5, out=x)
    return x.astype(np.uint8).reshape(part.shape)
