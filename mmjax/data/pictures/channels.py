"""The channels of a loaded picture: gray, palettes and transparency become red, green and blue."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageColor

from mmjax.core.config import ConfigError
from mmjax.data.sample import Unreadable

Color = tuple[int, int, int]

WHITE: Color = (255, 255, 255)


def parse_background(name: str) -> Color | None:
    """The color of that name, or of ``#rrggbb``; None for ``keep``.

    Example::

        >>> parse_background("white"), parse_background("#102030"), parse_background("keep")
        ((255, 255, 255), (16, 32, 48), None)
    """
    if name == "keep":
        return None
    try:
        color = ImageColor.getrgb(name)
    except ValueError:
        color = None
    if color is None or len(color) != 3:
        raise ConfigError(
            f"data.background={name!r}: not a color; use a name or '#rrggbb', or 'keep' for a fourth channel"
        )
    return color


def to_rgb(image: Image.Image, background: Color | None) -> np.ndarray:
    """The stored pixels of a loaded picture as u8[H, W, 3], or with alpha as u8[H, W, 4] if ``background`` is None.

    16-bit gray keeps its high byte. Where a picture is opaque its pixels are those of ``Image.convert("RGB")``.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    elif image.mode == "F":
        raise ValueError("floating-point pixels, whose white level is unknown")
    if not image.has_transparency_data:
        return add_alpha(np.asarray(image if image.mode == "RGB" else image.convert("RGB")), background)
    image = image.convert("RGBA")
    if background is None:
        return np.asarray(image)
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=image.getchannel("A"))
    return np.asarray(canvas)


def add_alpha(pixels: np.ndarray, background: Color | None) -> np.ndarray:
    """Opaque pixels u8[H, W, 3], with their alpha if ``background`` is None."""
    if background is not None:
        return pixels
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])


def to_three_channels(pixels: np.ndarray, key: str) -> np.ndarray:
    """u8[H, W, 1 or 3] as u8[H, W, 3]; all else is Unreadable."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise Unreadable("corrupt image", f"{pixels.dtype}{list(pixels.shape)}, not uint8[H, W, 1 or 3]", key=key)
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.size and not 0 <= values.min() <= values.max() <= 0xFFFF:
        raise ValueError("32-bit pixels, whose white level is unknown")
    gray = Image.fromarray((values >> 8).astype(np.uint8))
    if isinstance(clear := image.info.get("transparency"), int):
        gray.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return gray
