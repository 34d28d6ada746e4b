"""Random boxes and derangements, which the CutSwitch transforms share."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
    """Rows ``top`` to ``bottom - 1`` and columns ``left`` to ``right - 1``; may be empty."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """An index into [H, W, …]."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def random_box(height: int, width: int, *, alpha: float, random: np.random.Generator) -> Box:
    """The box of CutMix (arXiv:1905.04899): sides ``√(1 - λ)`` times the picture's, with ``λ ~ Beta(α, α)``.

    The center is uniform over the pixels. The box is clipped at the borders, which lowers its mean area: for α = 1
    from one half to 0.32.
    """
    side = math.sqrt(1 - random.beta(alpha, alpha))
    rows, columns = int(height * side), int(width * side)
    top = int(random.integers(height)) - rows // 2
    left = int(random.integers(width)) - columns // 2
    return Box(max(top, 0), min(top + rows, height), max(left, 0), min(left + columns, width))


def derangement(count: int, random: np.random.Generator) -> np.ndarray:
    """i64[count]: a permutation without fixed points, drawn uniformly."""
    places = np.arange(count)
    while True:  # one permutation in e is a derangement, whatever the count
        drawn = random.permutation(count)
        if (drawn != places).all():
            return drawn
