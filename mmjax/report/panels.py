"""Images and captions with what the model retrieved for them, as the page template shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmjax.data.sequences import frames

SMALL_PIXELS = 128
"""Images below this size are enlarged without smoothing, so that the page shows the pixels that the model sees."""

HEAT = np.array([(12, 8, 60), (120, 30, 110), (220, 80, 60), (250, 170, 40), (255, 250, 170)], np.float64)
"""Colors of a map from nothing to its largest value: brighter at each step, as they lie over pictures of any color."""

HEAT_OPACITY = 0.6


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


class GroundingCard(NamedTuple):
    """A text, its picture, the map to lay over it, and the box (left, top, width, height) in percent of the picture."""

    text: str
    picture: Picture
    heat: Picture
    box: tuple[float, ...]
    mass: float  # the fraction of the map in the box
    area: float  # the fraction of the picture in the box
    correct: bool  # whether the largest value lies in the box


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


def grounding_cards(panel: Sequence[Mapping[str, Any]]) -> list[GroundingCard]:
    """A card for each entry of the panel of ``mmjax.evals.refcoco``."""
    cards = []
    for entry in panel:
        left, top, right, bottom = (100 * min(max(float(x), 0.0), 1.0) for x in entry["box"])
        cards.append(
            GroundingCard(
                text=entry["text"],
                picture=encode_picture(entry["image"]),
                heat=_encode_heat(entry["heat"]),
                box=(left, top, right - left, bottom - top),
                mass=entry["mass_in_box"],
                area=entry["area_of_box"],
                correct=bool(entry["pointing"]),
            )
        )
    return cards


def _encode_heat(heat: np.ndarray) -> Picture:
    """A map f[n, n], of which what is below 0 counts as 0, in half-transparent colors."""
    height = np.clip(heat, 0, None) / max(heat.max(), 1e-30)
    steps = np.linspace(0, 1, len(HEAT))
    colors = [np.interp(height, steps, channel) for channel in HEAT.T]
    pixels = np.stack([*colors, np.full(heat.shape, 255 * HEAT_OPACITY)], axis=-1)
    return _encode(Image.fromarray(np.rint(pixels).astype(np.uint8)), small=False)


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
    return _encode(Image.fromarray(pixels), small=max(pixels.shape[:2]) < SMALL_PIXELS)


def _encode(image: Image.Image, *, small: bool) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Picture(uri=f"data:image/png;base64,{data}", small=small)
