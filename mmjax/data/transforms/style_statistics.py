"""MixStyle (arXiv:2104.02008) in pixel space: the color statistics of one picture on the content of another.

With μ and σ the mean and standard deviation of each channel over a picture, row i is mixed with its partner j::

    x_i ← (λ σ_i + (1 - λ) σ_j) (x_i - μ_i) / σ_i + λ μ_i + (1 - λ) μ_j          λ ~ Beta(α, α)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import cv2
import numpy as np

from mmjax.data.pictures import pixels
from mmjax.data.sample import BatchRows
from mmjax.data.transforms.common.base import Alpha, Probability, Stage, check_modalities


class Transform:
    """Mixes brightness, contrast and tint of some rows with those of others; captions and targets stay as they are.

    The partner is the same member of the next group of the global batch; after the last group comes the first. Its
    pixels are those before this transform. All ``modalities`` share λ, each with the partner's own statistics.

    Args:
      probability: of changing a row; 0.5 in the paper.
      alpha: of λ's distribution; 0.1 in the paper.
      modalities: which modalities are changed.
      data_modalities: all modalities of the data.
    """

    stage: ClassVar[Stage] = "batch"

    def __init__(
        self,
        *,
        probability: Probability = 0.5,
        alpha: Alpha = 0.1,
        modalities: tuple[str, ...] = ("image",),
        data_modalities: tuple[str, ...] = ("image",),
    ):
        self._probability = probability
        self._alpha = alpha
        self._modalities = check_modalities(modalities, data_modalities)

    def partners(self, *, batch_size: int, group: int, host_rows: range) -> Mapping[int, int]:
        """Pairs each row with the same member of the next group; none if there is only one group."""
        return {row: (row + group) % batch_size for row in host_rows} if batch_size > group else {}

    def __call__(self, rows: BatchRows, random: Callable[[int], np.random.Generator]) -> BatchRows:
        """The rows, some with mixed statistics."""
        images = {name: x.copy() if name in self._modalities else x for name, x in rows.images.items()}
        for i in np.flatnonzero(rows.partner >= 0).tolist():
            generator = random(int(rows.numbers[i]))
            if generator.random() >= self._probability:
                continue
            mix_ratio = generator.beta(self._alpha, self._alpha)
            for name in self._modalities:
                images[name][i] = mix_statistics(rows.images[name][i], rows.images[name][rows.partner[i]], mix_ratio)
        return rows.replace(images=images)


def mix_statistics(x: np.ndarray, other: np.ndarray, mix_ratio: float) -> np.ndarray:
    """``x`` u8[H, W, 3] with ``mix_ratio`` of its own statistics and the rest of the other's."""
    (mean, deviation), (its_mean, its_deviation) = (
        (m[:, 0], s[:, 0]) for m, s in (cv2.meanStdDev(x), cv2.meanStdDev(other))
    )
    mixed = mix_ratio * deviation + (1 - mix_ratio) * its_deviation
    # A constant channel has nothing to scale.
    gain = np.where(deviation > 0, mixed / np.where(deviation > 0, deviation, 1), 0)
    return pixels.apply_table(
        x, (np.arange(256.0)[:, None] - mean) * gain + mix_ratio * mean + (1 - mix_ratio) * its_mean
    )
