"""Random boxes, and permutations that leave nothing in its place."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mmjax.core.config import ConfigError


class Box(NamedTuple):
    """Rows ``top`` to ``bottom - 1`` and columns ``left`` to ``right - 1``; perhaps none."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """An index into [H, W, …]."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def random_box(height: int, width: int, *, alpha: float, random: np.random.Generator) -> Box:
    """CutMix's law (arXiv:1905.04899): sides ``√(1 - λ)`` of the picture's, ``λ ~ Beta(α, α)``, cut at the borders.

    The center is uniform over the pixels; cutting lowers the mean area, for α = 1 from one half to 0.32.
    """
    side = math.sqrt(1 - random.beta(alpha, alpha))
    rows, columns = int(height * side), int(width * side)
    top = int(random.integers(height)) - rows // 2
    left = int(random.integers(width)) - columns // 2
    return Box(max(top, 0), min(top + rows, height), max(left, 0), min(left + columns, width))


def derangement(count: int, random: np.random.Generator) -> np.ndarray:
    """i64[count]: a permutation without fixed points; each is as likely."""
    places = np.arange(count)
    while True:  # one permutation in e is one, whatever the count
        drawn = random.permutation(count)
        if (drawn != places).all():
            return drawn


def check(*, probability: float, alpha: float) -> None:
    """Raises where these options of a transform that draws boxes cannot be."""
    if not 0 <= probability <= 1:
        raise ConfigError(f"probability={probability}: set it between 0 and 1")
    if not 0 < alpha < math.inf:
        raise ConfigError(f"alpha={alpha}: must be greater than 0; 1 draws all shares alike")
