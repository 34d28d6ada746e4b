"""CutSwitch (AMF, ACM Multimedia 2020): aligned modalities exchange a block of pixels."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.sample import Sample
from mmjax.data.transforms.common.base import Alpha, Probability, Stage
from mmjax.data.transforms.common.boxes import derangement, random_box


class Transform:
    """Puts a block of each modality into another one, with one box and a derangement π of the modalities::

        out_k[box] = in_π(k)[box],  out_k = in_k elsewhere

    No pixel is lost, no label is mixed, and captions stay as they are. The paper does not say how the box is drawn:
    here it is drawn as in CutMix, and all derangements are equally likely (two modalities have one).

    Args:
      data_modalities: the modalities of the data, two or more, aligned pixel by pixel.
      probability: of changing a sample.
      alpha: the box covers ``1 - λ`` of the picture before it is clipped at the borders, with ``λ ~ Beta(α, α)``.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(self, *, data_modalities: tuple[str, ...], probability: Probability = 0.5, alpha: Alpha = 1.0):
        if len(data_modalities) < 2:
            raise ConfigError(
                f"data.modalities={tuple(data_modalities)}: cutswitch needs two or more, aligned by pixel; add one, "
                "or use cutswitch_views, which needs only one"
            )
        self._modalities = tuple(data_modalities)
        self._probability, self._alpha = probability, alpha

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample with blocks exchanged between its modalities, or as it is."""
        if random.random() >= self._probability:
            return sample
        pictures = [sample.images[name] for name in self._modalities]
        if len({picture.shape for picture in pictures}) > 1:
            shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in sample.images.items())
            raise ConfigError(f"data.transforms: cutswitch needs pictures of one shape, not {shapes}; crop them first")
        height, width = pictures[0].shape[:2]
        block = random_box(height, width, alpha=self._alpha, random=random).slices
        images = dict(sample.images)
        for name, picture, other in zip(
            self._modalities, pictures, derangement(len(pictures), random).tolist(), strict=True
        ):
            images[name] = picture.copy()
            images[name][block] = pictures[other][block]
        return dataclasses.replace(sample, images=images)
