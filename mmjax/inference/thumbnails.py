"""Small versions of pictures, as ``data:`` URIs in pages."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from mmjax.data.pictures import decode, size_of
from mmjax.data.sample import Crop
from mmjax.report.panels import SMALL_PIXELS, Picture, encode_picture

SIDE = 224  # the longer one in pixels, at most


def make_thumbnail(picture: bytes | np.ndarray) -> Picture:
    """Decodes a picture, reduced to at most ``SIDE`` pixels; raises ``Unreadable``."""
    height, width = size_of(picture)
    scale = SIDE / max(height, width)
    crop = None
    if scale < 1:
        size = max(round(height * scale), 1), max(round(width * scale), 1)
        crop = Crop(0, 0, height, width, size=size, inner=size, resample="fast")
    pixels = decode(picture, crop)
    if max(pixels.shape[:2]) < SMALL_PIXELS:
        return encode_picture(pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=85)
    return Picture(f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", small=False)
