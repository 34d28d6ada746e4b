"""Pictures for tests: photograph-like pixels, and files of them."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image


def photograph(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """u8[H, W, 3] with detail on all scales, edges and a little noise, as from a camera."""
    random = np.random.default_rng(seed)
    x = np.full((height, width, 3), 128, np.float32)
    for k in range(1, 7):
        coarse = random.normal(size=(2**k, 2**k, 3)).astype(np.float32)
        x += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * (60 / 2 ** (0.6 * k))
    for _ in range(20):
        top, left = int(random.integers(height)), int(random.integers(width))
        x[top : top + height // 6, left : left + width // 8] = random.uniform(0, 255, 3)
    x = cv2.GaussianBlur(x, (3, 3), 0.6) + random.normal(size=x.shape) * 2
    return np.clip(x, 0, 255).astype(np.uint8)


def encoded(picture: np.ndarray | Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The file that Pillow writes."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    """What Pillow makes of a file, in RGB."""
    return Image.open(io.BytesIO(data)).convert("RGB")
