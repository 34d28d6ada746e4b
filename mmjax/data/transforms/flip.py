"""Random flips, with words such as left and right swapped in the captions."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import cv2
import numpy as np

from mmjax.data.sample import Sample
from mmjax.data.transforms.common.base import Probability, Stage

ACROSS = (("left", "right"), ("leftmost", "rightmost"))
DOWN = (("top", "bottom"), ("above", "below"), ("upper", "lower"), ("topmost", "bottommost"))


class Transform:
    """Flips all modalities together, horizontally and vertically with separate probabilities.

    Whole words are swapped in captions and hard negatives, in upper and lower case. This also changes "he left" and
    "on top of": use ``swap_words`` for captions that say where things are, and turn it off for others. Boxes in
    ``fields`` and the sample's ``crop`` still refer to the picture before the flip, so transforms that need them must
    come first.

    Args:
      horizontal: probability of exchanging left and right.
      vertical: probability of exchanging top and bottom.
      swap_words: also swap left and right, leftmost and rightmost (horizontal); top and bottom, above and below, upper
        and lower, topmost and bottommost (vertical) in texts.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(self, *, horizontal: Probability = 0.5, vertical: Probability = 0.0, swap_words: bool = True):
        self._horizontal = horizontal
        self._vertical = vertical
        self._swap_words = swap_words

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample, flipped or as it is."""
        across, down = random.random() < self._horizontal, random.random() < self._vertical
        if not (across or down):
            return sample
        flip_code = -1 if across and down else 1 if across else 0  # OpenCV's
        for name, x in sample.images.items():
            sample.images[name] = cv2.flip(x, flip_code).reshape(x.shape)
        if self._swap_words:
            pairs = (*(ACROSS if across else ()), *(DOWN if down else ()))
            sample.captions = [swap_pairs(text, pairs) for text in sample.captions]
            if "negatives" in sample.fields:
                sample.fields["negatives"] = [_negative(entry, pairs) for entry in sample.fields["negatives"]]
        return sample


def swap_pairs(text: str, pairs: tuple[tuple[str, str], ...]) -> str:
    """``text`` with the words of each pair swapped; the case of the first letter, or of all, is kept."""
    other = {a: b for pair in pairs for a, b in (pair, pair[::-1])}

    def swap(match: re.Match[str]) -> str:
        word = match.group()
        new = other[word.lower()]
        return new.upper() if word.isupper() else new.capitalize() if word[0].isupper() else new

    return re.sub(rf"\b(?:{'|'.join(other)})\b", swap, text, flags=re.IGNORECASE | re.ASCII)


def _negative(entry: Any, pairs: tuple[tuple[str, str], ...]) -> tuple[str, str, str]:
    kind, true, false = entry
    return kind, swap_pairs(true, pairs), swap_pairs(false, pairs)
