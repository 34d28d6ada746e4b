"""Shrinks pictures and converts their format, for storage."""

from __future__ import annotations

import dataclasses
import io
from typing import Literal, get_args

import numpy as np
from PIL import Image

from mmjax.core.config import ConfigError, choose
from mmjax.data import pictures
from mmjax.data.pictures.channels import WHITE, Color
from mmjax.data.sample import Crop, Unreadable

Format = Literal["keep", "jpeg", "png", "webp"]

_CHECK_SHRINK = 8  # at an eighth of the size, libjpeg-turbo skips most of the work but reads every byte


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reencoding:
    """How pictures are stored. By default their bytes stay as they are, and are only decoded once as a check.

    A picture is never enlarged. One that already has the right format and size keeps its bytes; others are rotated
    upright (without Exif orientation), converted to RGB and encoded. JPEG has white in place of transparency.

    Args:
      image_size: largest length of the shorter side; 0 is no limit.
      format: ``keep`` is the picture's own format if that is JPEG, PNG or WebP, and PNG otherwise (as for arrays).
      quality: of JPEG and WebP, 1 to 100.
    """

    image_size: int = 0
    format: Format = "keep"
    quality: int = 90

    def __post_init__(self) -> None:
        choose(self.format, get_args(Format), path="format")
        if self.image_size < 0:
            raise ConfigError(f"image_size={self.image_size}: must be at least 1, or 0 for no limit")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality={self.quality}: must be from 1 to 100; 90 is a good one")

    def __call__(self, picture: bytes | np.ndarray, *, key: str = "") -> bytes:
        """The encoded picture; raises ``Unreadable`` if it is broken."""
        height, width = pictures.size_of(picture, key=key)
        if min(height, width) < 1:
            raise Unreadable("corrupt image", f"{width} x {height}", key=key)
        own = None if isinstance(picture, np.ndarray) else format_of(picture)
        wanted = self.format if self.format != "keep" else own or "png"
        shrink = self.image_size / min(height, width) if self.image_size else 1.0
        if shrink >= 1 and not isinstance(picture, np.ndarray) and (wanted == own or self.format == "keep"):
            check(picture, key=key)
            return bytes(picture)
        crop = _view(height, width, shrink, resample="bicubic") if shrink < 1 else None
        keeps_alpha = wanted != "jpeg" and pictures.has_alpha(picture, key=key)
        pixels = pictures.decode(picture, crop, key=key, background=None if keeps_alpha else WHITE)
        return _encode(pixels, wanted, self.quality)


def check(picture: bytes | np.ndarray, *, key: str = "") -> tuple[int, int]:
    """Height and width of a picture; raises ``Unreadable`` if it cannot be decoded to its end."""
    height, width = pictures.size_of(picture, key=key)
    _decode_small(picture, height, width, key)
    return height, width


def is_transparent(picture: bytes | np.ndarray, *, key: str = "") -> bool:
    """Whether some pixels of a picture are not opaque."""
    if not pictures.has_alpha(picture, key=key):
        return False
    return bool((_decode_small(picture, *pictures.size_of(picture, key=key), key, background=None)[..., 3] < 255).any())


def _decode_small(
    picture: bytes | np.ndarray, height: int, width: int, key: str, *, background: Color | None = WHITE
) -> np.ndarray:
    view = _view(height, width, 1 / _CHECK_SHRINK, resample="fast")
    return pictures.decode(picture, view, key=key, background=background)


def format_of(data: bytes) -> str | None:
    """``jpeg``, ``png`` or ``webp``, by the first bytes; None for other formats."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _view(height: int, width: int, scale: float, *, resample: Literal["fast", "bicubic"]) -> Crop:
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    return Crop(0, 0, height, width, size, size, resample=resample)


def _encode(pixels: np.ndarray, format: str, quality: int) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    if format == "png":
        image.save(out, "PNG")
    elif format == "jpeg":
        image.save(out, "JPEG", quality=quality)
    else:
        image.save(out, "WEBP", quality=quality)
    return out.getvalue()
