"""The style of one picture on the content of another: MixStyle (arXiv:2104.02008) in pixel space.

With μ and σ the mean and standard deviation of each channel over a picture, row i takes up its partner j::

    x_i ← (λ σ_i + (1 - λ) σ_j) (x_i - μ_i) / σ_i + λ μ_i + (1 - λ) μ_j          λ ~ Beta(α, α)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import cv2
import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.pictures import pixels
from mmjax.data.sample import BatchRows
from mmjax.data.transforms.base import Stage


class Transform:
    """Mixes the brightness, contrast and tint of some rows with those of others; captions and targets stay.

    The partner is the same member of the next group of the global batch, the last one's is in the first; its pixels
    are those before this transform. All ``modalities`` share λ; each takes the statistics of the partner's same one.

    Args:
      probability: that a row is changed; the paper's 0.5.
      alpha: small values give λ near 0 or 1; the paper's 0.1.
      modalities: the modalities that are changed.
      data_modalities: those there are.
    """

    stage: ClassVar[Stage] = "batch"

    def __init__(
        self,
        *,
        probability: float = 0.5,
        alpha: float = 0.1,
        modalities: tuple[str, ...] = ("image",),
        data_modalities: tuple[str, ...] = ("image",),
    ):
        if not 0 < alpha < math.inf:
            raise ConfigError(f"alpha={alpha}: must be greater than 0; the paper has 0.1")
        self._probability = pixels.probability("probability", probability)
        self._alpha = alpha
        self._modalities = pixels.check_modalities(modalities, data_modalities)

    def partners(self, *, batch_size: int, group: int, host_rows: range) -> Mapping[int, int]:
        """Each row and the same member of the next group; nothing where there is only one group."""
        return {row: (row + group) % batch_size for row in host_rows} if batch_size > group else {}

    def __call__(self, rows: BatchRows, random: Callable[[int], np.random.Generator]) -> BatchRows:
        """The rows, some in another style."""
        images = {name: x.copy() if name in self._modalities else x for name, x in rows.images.items()}
        for i in np.flatnonzero(rows.partner >= 0).tolist():
            draw = random(int(rows.numbers[i]))
            if draw.random() >= self._probability:
                continue
            share = draw.beta(self._alpha, self._alpha)
            for name in self._modalities:
                images[name][i] = restyled(rows.images[name][i], rows.images[name][rows.partner[i]], share)
        return rows.replace(images=images)


def restyled(x: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """u8[H, W, 3] with ``share`` of its own statistics and the rest of the other's."""
    (mean, deviation), (its_mean, its_deviation) = (
        (m[:, 0], s[:, 0]) for m, s in (cv2.meanStdDev(x), cv2.meanStdDev(other))
    )
    mixed = share * deviation + (1 - share) * its_deviation
    # A channel of one level has nothing to scale.
    gain = np.where(deviation > 0, mixed / np.where(deviation > 0, deviation, 1), 0)
    return pixels.levels(x, (np.arange(256.0)[:, None] - mean) * gain + share * mean + (1 - share) * its_mean)
