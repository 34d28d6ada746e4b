"""Pixels of pictures as files and services want them, and as they come back."""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image

from mmjax.generate.backend import Picture


def to_pillow(picture: Picture) -> Image.Image:
    """An RGB image of Pillow."""
    return Image.fromarray(np.ascontiguousarray(picture.pixels))


def to_png(picture: Picture, *, opacity: np.ndarray | None = None) -> bytes:
    """A PNG file; ``opacity`` u8[H, W] is its alpha channel."""
    image = to_pillow(picture)
    if opacity is not None:
        image.putalpha(Image.fromarray(opacity))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def digest(picture: Picture) -> str:
    """SHA-256 of shape and pixels, whatever a PNG of them looks like."""
    pixels = np.ascontiguousarray(picture.pixels)
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def resize(picture: Picture, size: tuple[int, int]) -> Picture:
    """The picture with that height and width."""
    if picture.pixels.shape[:2] == tuple(size):
        return picture
    height, width = size
    return Picture(np.asarray(to_pillow(picture).resize((width, height), Image.Resampling.BICUBIC)))


def paste_outside(made: Picture, original: Picture, mask: np.ndarray) -> Picture:
    """``made`` inside the mask bool[H, W] and ``original`` outside, in the original's size."""
    inside = resize(made, original.pixels.shape[:2]).pixels
    return Picture(np.where(mask[..., None], inside, original.pixels))
