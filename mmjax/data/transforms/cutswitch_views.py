"""CutSwitch between two renderings of one picture: our adaptation to data with a single modality."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.sample import Sample
from mmjax.data.transforms.base import Stage
from mmjax.data.transforms.boxes import check, random_box

_GRAY = np.array([0.299, 0.587, 0.114])


class Light(NamedTuple):
    """Factors of a rendering; ones leave a picture as it is."""

    brightness: float
    contrast: float
    saturation: float


class Transform:
    """Renders a picture twice, in another light each, and puts a block of the second rendering into the first.

    This is not the paper's method, which exchanges blocks between sensors (``cutswitch``): it borrows the block and
    the unchanged caption, for data that have pictures of one kind alone. The two views are aligned, so nothing of the
    scene is lost or moved; what a block changes is its light. Of the two views that the exchange leaves the first is
    kept. Modalities share box and factors. All of a sample's pictures are changed, with a block or without: the
    ``probability`` is that of a block.

    Args:
      probability: that the second rendering's block is put in.
      alpha: of the box's share of the picture: ``1 - λ`` before it is cut at the borders, ``λ ~ Beta(α, α)``.
      brightness: factors come from 1 - this to 1 + this, each as likely; black is the fixed point.
      contrast: the same about the picture's mean gray.
      saturation: the same about each pixel's gray.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(
        self,
        *,
        probability: float = 0.5,
        alpha: float = 1.0,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
    ):
        check(probability=probability, alpha=alpha)
        self._spread = Light(brightness, contrast, saturation)
        for name, value in self._spread._asdict().items():
            if not 0 <= value <= 1:
                raise ConfigError(f"{name}={value}: factors are drawn from 1 ± this; set it between 0 and 1")
        if not any(self._spread):
            raise ConfigError("brightness=0, contrast=0, saturation=0: both views are the same; set one above 0")
        self._probability, self._alpha = probability, alpha

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample in another light, with a block in yet another, or without."""
        first, second = (Light(*(1 + np.array(self._spread) * random.uniform(-1, 1, 3)).tolist()) for _ in range(2))
        images = {name: lit(picture, first) for name, picture in sample.images.items()}
        if random.random() < self._probability:
            height, width = next(iter(images.values())).shape[:2]
            block = random_box(height, width, alpha=self._alpha, random=random).slices
            for name, picture in sample.images.items():
                images[name][block] = lit(picture, second, block)
        return dataclasses.replace(sample, images=images)


def lit(picture: np.ndarray, light: Light, block: tuple[slice, slice] = (slice(None), slice(None))) -> np.ndarray:
    """The ``block`` of u8[H, W, 3] in that light, rounded and clipped once, at the end::

    y = brightness · (contrast · x + (1 - contrast) · mean gray),  saturation · y + (1 - saturation) · gray(y)
    """
    height, width = picture.shape[:2]
    # Rows first: numpy sums over both axes at once twenty times slower where the last has three entries.
    total = picture.reshape(height, -1).sum(axis=0, dtype=np.uint32).reshape(-1, 3).sum(axis=0, dtype=np.uint64)
    mean = float(total @ _GRAY) / (height * width)
    towards_gray = light.saturation * np.eye(3) + (1 - light.saturation) * _GRAY[:, None]
    part = picture[block]
    x = part.reshape(-1, 3).astype(np.float32) @ (light.brightness * light.contrast * towards_gray).astype(np.float32)
    x += np.float32(light.brightness * (1 - light.contrast) * mean + 0.5)
    np.clip(x, 0, 255.5, out=x)
    return x.astype(np.uint8).reshape(part.shape)
