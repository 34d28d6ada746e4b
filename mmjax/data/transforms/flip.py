"""Mirrored pictures, with the words of their captions that a mirror turns into lies exchanged."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import cv2
import numpy as np

from mmjax.data.pictures.pixels import probability
from mmjax.data.sample import Sample
from mmjax.data.transforms.base import Stage

ACROSS = (("left", "right"), ("leftmost", "rightmost"))
DOWN = (("top", "bottom"), ("above", "below"), ("upper", "lower"), ("topmost", "bottommost"))


class Transform:
    """Mirrors all modalities alike: left and right with one probability, top and bottom with another.

    Words are exchanged wherever they stand alone, in any case, in the captions and in the hard negatives, where
    "he left" and "on top of" are, too: leave ``swap_words`` on for captions that say where things are, and switch it
    off where they hardly do. Boxes in ``fields`` and the sample's ``crop`` still speak of the picture before: what
    needs them comes before this.

    Args:
      horizontal: probability that left and right are exchanged.
      vertical: probability that top and bottom are.
      swap_words: whether left and right, leftmost and rightmost (horizontal); top and bottom, above and below, upper
        and lower, topmost and bottommost (vertical) are exchanged in texts as well.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(self, *, horizontal: float = 0.5, vertical: float = 0.0, swap_words: bool = True):
        self._horizontal = probability("horizontal", horizontal)
        self._vertical = probability("vertical", vertical)
        self._swap_words = swap_words

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample, perhaps mirrored."""
        across, down = random.random() < self._horizontal, random.random() < self._vertical
        if not (across or down):
            return sample
        axes = -1 if across and down else 1 if across else 0  # OpenCV's code for them
        for name, x in sample.images.items():
            sample.images[name] = cv2.flip(x, axes).reshape(x.shape)
        if self._swap_words:
            pairs = (*(ACROSS if across else ()), *(DOWN if down else ()))
            sample.captions = [exchanged(text, pairs) for text in sample.captions]
            if "negatives" in sample.fields:
                sample.fields["negatives"] = [_negative(entry, pairs) for entry in sample.fields["negatives"]]
        return sample


def exchanged(text: str, pairs: tuple[tuple[str, str], ...]) -> str:
    """``text`` with the words of each pair exchanged; capitals stay where they were."""
    other = {a: b for pair in pairs for a, b in (pair, pair[::-1])}

    def swap(match: re.Match[str]) -> str:
        word = match.group()
        new = other[word.lower()]
        return new.upper() if word.isupper() else new.capitalize() if word[0].isupper() else new

    return re.sub(rf"\b(?:{'|'.join(other)})\b", swap, text, flags=re.IGNORECASE | re.ASCII)


def _negative(entry: Any, pairs: tuple[tuple[str, str], ...]) -> tuple[str, str, str]:
    kind, true, false = entry
    return kind, exchanged(true, pairs), exchanged(false, pairs)
