"""Images and captions with what the model retrieved for them, as the page template shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmjax.data.formats import frames

SMALL_PIXELS = 128
"""Images below this size are enlarged without smoothing, so that the page shows the pixels that the model sees."""


class Picture(NamedTuple):
    """An image as a ``data:`` URI."""

    uri: str
    small: bool


class ImageCard(NamedTuple):
    """An image, its own captions, and the retrieved ones as (caption, cosine, whether it is correct)."""

    picture: Picture
    captions: Sequence[str]
    retrieved: Sequence[tuple[str, float, bool]]


class CaptionCard(NamedTuple):
    """A caption, its own image, and the retrieved ones as (picture, cosine, whether it is correct)."""

    caption: str
    picture: Picture
    retrieved: Sequence[tuple[Picture, float, bool]]


def image_cards(panel: Sequence[Mapping[str, Any]]) -> list[ImageCard]:
    """A card for each entry of ``Evaluator.panel``."""
    return [ImageCard(encode_picture(e["image"]), e["captions"], e["retrieved"]) for e in panel]


def caption_cards(panel: Sequence[Mapping[str, Any]]) -> list[CaptionCard]:
    """A card for each entry of ``Evaluator.caption_panel``."""
    return [
        CaptionCard(
            caption=entry["caption"],
            picture=encode_picture(entry["image"]),
            retrieved=[(encode_picture(image), score, correct) for image, score, correct in entry["retrieved"]],
        )
        for entry in panel
    ]


def encode_picture(pixels: np.ndarray) -> Picture:
    """Encodes u8[H, W], u8[H, W, 1] or u8[H, W, 3], or a drawing of a sequence f32[T, D + 1], as PNG."""
    pixels = np.asarray(pixels)
    if pixels.ndim == 2 and pixels.dtype == np.float32:
        pixels = frames.draw(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(
            f"an image of {pixels.dtype}{list(pixels.shape)}; expected uint8 [H, W], [H, W, 1] or [H, W, 3]"
        )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Picture(uri=f"data:image/png;base64,{data}", small=max(pixels.shape[:2]) < SMALL_PIXELS)
