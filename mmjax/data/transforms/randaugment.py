"""RandAugment (arXiv:1909.13719): a few operations drawn from fourteen, all of one strength."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.pictures import pixels
from mmjax.data.sample import Sample
from mmjax.data.transforms.base import Stage

BINS = 31
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
PHOTOMETRIC = ("brightness", "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize")
OPERATIONS = ("identity", *GEOMETRIC, *PHOTOMETRIC)


class Transform:
    """Applies ``num_ops`` operations one after the other, each drawn uniformly from ``OPERATIONS``, repeats allowed.

    Strengths are torchvision's: at the greatest magnitude, 30, a shear by 0.3, a shift by 150/331 of the side, a turn
    by 30 degrees, a factor of 1 ± 0.9 for brightness, color, contrast and sharpness, 4 bits for posterize, everything
    inverted by solarize; in between in proportion. Signs are drawn. Shears and turns are about the center, bilinear.
    Geometric operations act on all modalities alike, photometric ones on ``modalities``, with one sign for all.

    Args:
      num_ops: operations a sample.
      magnitude: 0 to 30.
      fill: gray level of what comes in from outside.
      modalities: the modalities whose levels are changed.
      data_modalities: those there are.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(
        self,
        *,
        num_ops: int = 2,
        magnitude: int = 9,
        fill: int = 0,
        modalities: tuple[str, ...] = ("image",),
        data_modalities: tuple[str, ...] = ("image",),
    ):
        if num_ops < 0:
            raise ConfigError(f"num_ops={num_ops}: a number of operations; set it to 0 or more")
        if not 0 <= magnitude < BINS:
            raise ConfigError(f"magnitude={magnitude}: a bin; set it from 0 to {BINS - 1}")
        if not 0 <= fill <= 255:
            raise ConfigError(f"fill={fill}: a gray level; set it from 0 to 255")
        self._num_ops = num_ops
        self._magnitude = magnitude
        self._fill = fill
        self._modalities = pixels.check_modalities(modalities, data_modalities)

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample after the operations drawn."""
        for _ in range(self._num_ops):
            name = OPERATIONS[random.integers(len(OPERATIONS))]
            sign = 1 if random.random() < 0.5 else -1
            for modality, x in sample.images.items():
                if name in GEOMETRIC or modality in self._modalities:
                    sample.images[modality] = operation(name, self._magnitude, sign=sign, fill=self._fill)(x)
        return sample


def operation(name: str, magnitude: int, *, sign: int, fill: int) -> Callable[[np.ndarray], np.ndarray]:
    """One of ``OPERATIONS`` at bin ``magnitude``, from u8[H, W, 3] to the same."""
    part = magnitude / (BINS - 1)
    if name in GEOMETRIC:
        return lambda x: pixels.warped(x, _matrix(name, sign * part, *x.shape[:2]), fill)
    factor = 1 + sign * 0.9 * part
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "identity": lambda x: x,
        "brightness": lambda x: pixels.brightness(x, factor),
        "color": lambda x: pixels.saturation(x, factor),
        "contrast": lambda x: pixels.contrast(x, factor),
        "sharpness": lambda x: pixels.sharpness(x, factor),
        "posterize": lambda x: pixels.posterized(x, 8 - round(4 * part)),
        "solarize": lambda x: pixels.solarized(x, 255 * (1 - part)),
        "autocontrast": pixels.stretched,
        "equalize": pixels.equalized,
    }
    return changes[name]


def _matrix(name: str, part: float, height: int, width: int) -> np.ndarray:
    """Where the pixels of the result come from, about the center: f64[2, 3]."""
    turn = math.radians(30 * part) if name == "rotate" else 0.0
    cosine, sine = math.cos(turn), math.sin(turn)
    matrix = np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0]])
    if name == "shear_x":
        matrix[0, 1] = 0.3 * part
    elif name == "shear_y":
        matrix[1, 0] = 0.3 * part
    elif name == "translate_x":
        matrix[0, 2] = 150 / 331 * width * part
    elif name == "translate_y":
        matrix[1, 2] = 150 / 331 * height * part
    return matrix
