"""RandAugment (arXiv:1909.13719): random image operations, all of one magnitude."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, ClassVar

import numpy as np

from mmjax.core.config import Between, Ge
from mmjax.data.pictures import pixels
from mmjax.data.sample import Sample
from mmjax.data.transforms.common.base import GrayLevel, Stage, check_modalities

BINS = 31
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
PHOTOMETRIC = ("brightness", "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize")
OPERATIONS = ("identity", *GEOMETRIC, *PHOTOMETRIC)


class Transform:
    """Applies ``num_ops`` operations in turn, each drawn uniformly from ``OPERATIONS`` with replacement.

    Magnitudes are torchvision's. At 30, the largest, they are a shear by 0.3, a shift by 150/331 of the side, a
    rotation by 30 degrees, a factor of 1 ± 0.9 for brightness, color, contrast and sharpness, 4 bits for posterize and
    the inverted picture for solarize; smaller ones are in proportion. Signs are random. Shears and rotations are about
    the center, with bilinear interpolation.
    Geometric operations act on all modalities alike, photometric ones on ``modalities``, with one sign for all.

    Args:
      num_ops: operations per sample.
      magnitude: 0 to 30.
      fill: gray level of pixels from outside the picture.
      modalities: where photometric operations apply.
      data_modalities: all modalities of the data.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(
        self,
        *,
        num_ops: Annotated[int, Ge(0)] = 2,
        magnitude: Annotated[int, Between(0, BINS - 1)] = 9,
        fill: GrayLevel = 0,
        modalities: tuple[str, ...] = ("image",),
        data_modalities: tuple[str, ...] = ("image",),
    ):
        self._num_ops = num_ops
        self._magnitude = magnitude
        self._fill = fill
        self._modalities = check_modalities(modalities, data_modalities)

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample after ``num_ops`` random operations."""
        for _ in range(self._num_ops):
            name = OPERATIONS[random.integers(len(OPERATIONS))]
            sign = 1 if random.random() < 0.5 else -1
            for modality, x in sample.images.items():
                if name in GEOMETRIC or modality in self._modalities:
                    sample.images[modality] = operation(name, self._magnitude, sign=sign, fill=self._fill)(x)
        return sample


def operation(name: str, magnitude: int, *, sign: int, fill: int) -> Callable[[np.ndarray], np.ndarray]:
    """One of ``OPERATIONS`` at that magnitude, from u8[H, W, 3] to the same."""
    strength = magnitude / (BINS - 1)
    if name in GEOMETRIC:
        return lambda x: pixels.warp_affine(x, _matrix(name, sign * strength, *x.shape[:2]), fill)
    factor = 1 + sign * 0.9 * strength
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "identity": lambda x: x,
        "brightness": lambda x: pixels.brightness(x, factor),
        "color": lambda x: pixels.saturation(x, factor),
        "contrast": lambda x: pixels.contrast(x, factor),
        "sharpness": lambda x: pixels.sharpness(x, factor),
        "posterize": lambda x: pixels.posterize(x, 8 - round(4 * strength)),
        "solarize": lambda x: pixels.solarize(x, 255 * (1 - strength)),
        "autocontrast": pixels.autocontrast,
        "equalize": pixels.equalize,
    }
    return changes[name]


def _matrix(name: str, strength: float, height: int, width: int) -> np.ndarray:
    """The affine map f64[2, 3] from pixels of the result to those of the picture, about the center."""
    angle = math.radians(30 * strength) if name == "rotate" else 0.0
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0]])
    if name == "shear_x":
        matrix[0, 1] = 0.3 * strength
    elif name == "shear_y":
        matrix[1, 0] = 0.3 * strength
    elif name == "translate_x":
        matrix[0, 2] = 150 / 331 * width * strength
    elif name == "translate_y":
        matrix[1, 2] = 150 / 331 * height * strength
    return matrix
