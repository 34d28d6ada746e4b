"""Splits of scenes unlike those of training: other hues, light of another color, other phrases, exchanged colors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.data.pictures import pixels

SPLITS = {
    "hue": ("val", "test", "zeroshot"),
    "cast": ("val", "test", "zeroshot"),
    "words": ("val", "test", "zeroshot"),
    "flipped": ("val", "test"),
}
"""The shifts, and the splits that exist with each."""

FRAMES = (
    "the canvas shows {}", "{} can be seen in the picture", "someone drew {}", "a drawing of {}", "what we see is {}",
)  # fmt: skip
"""Phrases that no caption of ``train`` is put in, and no rewrite by the backend ``scenes``.

Twelve of their words are in no caption of ``train``; five of these, such as ``canvas``, are in rewrites.
"""

TEMPLATES = tuple(frame.format("a {}") for frame in FRAMES)
"""Prompts of classes in the same phrases."""


def shift_picture(x: np.ndarray, shift: str, u: Sequence[float], *, hue: float, cast: float) -> np.ndarray:
    """A picture u8[H, W, 3] with rotated hues or in colored light, from three uniform numbers; else as it is."""
    if shift == "hue":
        x = pixels.hue(x, hue if u[0] < 0.5 else -hue)
    elif shift == "cast":
        x = pixels.apply_table(x, np.arange(256)[:, None] * np.exp(cast * (2 * np.asarray(u) - 1)))
    else:
        return x
    x.flags.writeable = False
    return x


def reword_item(item: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
    """An item whose captions each are in one of ``FRAMES``, and its negatives both in one."""
    *of_captions, of_negatives = (FRAMES[k] for k in random.integers(len(FRAMES), size=len(item["captions"]) + 1))
    item["captions"] = [f.format(bare(text)) for f, text in zip(of_captions, item["captions"], strict=True)]
    if "negatives" in item:
        pairs = item["negatives"]
        item["negatives"] = [(k, of_negatives.format(true), of_negatives.format(false)) for k, true, false in pairs]
    return item


def bare(text: str) -> str:
    """What a caption says is there, without the words that say so."""
    return text.removeprefix("there is ").removeprefix("only ")
