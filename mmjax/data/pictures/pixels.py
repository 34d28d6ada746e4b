"""Operations on pixels u8[H, W, 3] that transforms share; each returns a new array, rounded to the nearest level."""

from __future__ import annotations

import cv2
import numpy as np

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow's mode L


def gray(x: np.ndarray) -> np.ndarray:
    """The luma in all three channels."""
    return cv2.cvtColor(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def apply_table(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Replaces level i by ``table[i]``, rounded and clipped; ``table`` is [256] for all channels, or [256, 3]."""
    rounded = np.clip(np.floor(table + 0.5), 0, 255).astype(np.uint8)
    return cv2.LUT(x, rounded if rounded.ndim == 1 else np.ascontiguousarray(rounded[None]))


def brightness(x: np.ndarray, factor: float) -> np.ndarray:
    """``factor · x``; 0 is black, 1 leaves the picture as it is."""
    return apply_table(x, factor * np.arange(256))


def contrast(x: np.ndarray, factor: float) -> np.ndarray:
    """``factor · x + (1 - factor) · m`` with m the mean luma; 0 is gray, 1 leaves the picture as it is."""
    mean = float(_LUMA @ np.array(cv2.mean(x)[:3]))
    return apply_table(x, factor * np.arange(256) + (1 - factor) * np.floor(mean + 0.5))


def saturation(x: np.ndarray, factor: float) -> np.ndarray:
    """``factor · x + (1 - factor) · luma(x)``; 0 is gray, 1 leaves the picture as it is."""
    return cv2.transform(x, factor * np.eye(3) + (1 - factor) * np.tile(_LUMA, (3, 1)))


def hue(x: np.ndarray, turns: float) -> np.ndarray:
    """Rotates hues by ``turns`` of the color wheel; ½ gives complementary colors."""
    wheel = cv2.cvtColor(x, cv2.COLOR_RGB2HSV_FULL)
    wheel[..., 0] += np.uint8(round(turns * 256) % 256)  # bytes overflow as the wheel wraps around
    return cv2.cvtColor(wheel, cv2.COLOR_HSV2RGB_FULL)


def sharpness(x: np.ndarray, factor: float) -> np.ndarray:
    """``factor · x + (1 - factor) · smooth(x)``; more than 1 is sharper than the picture. The border stays."""
    if min(x.shape[:2]) < 3:
        return x.copy()
    smooth = np.ones((3, 3), np.float32)
    smooth[1, 1] = 5
    mixed = (1 - factor) * smooth / 13
    mixed[1, 1] += factor
    out = cv2.filter2D(x, -1, mixed)
    out[[0, -1]] = x[[0, -1]]
    out[:, [0, -1]] = x[:, [0, -1]]
    return out


def posterize(x: np.ndarray, bits: int) -> np.ndarray:
    """The ``bits`` highest bits of each level."""
    return x & np.uint8(0xFF << (8 - bits) & 0xFF)


def solarize(x: np.ndarray, threshold: float) -> np.ndarray:
    """Levels from ``threshold`` on, inverted."""
    level = np.arange(256)
    return apply_table(x, np.where(level < threshold, level, 255 - level))


def autocontrast(x: np.ndarray) -> np.ndarray:
    """Stretches each channel so that its levels run from 0 to 255; a constant channel stays."""
    low, high = (f(x.reshape(-1, 3), axis=0).astype(float) for f in (np.min, np.max))
    span = np.where(high > low, high - low, 1)
    level = np.arange(256.0)[:, None]
    return apply_table(x, np.where(high > low, (level - low) * 255 / span, level))


def equalize(x: np.ndarray) -> np.ndarray:
    """Histogram equalization of each channel, as in Pillow."""
    table = np.tile(np.arange(256.0)[:, None], (1, 3))
    for channel in range(3):
        counts = np.bincount(x[..., channel].ravel(), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        if step:
            table[:, channel] = (step // 2 + np.cumsum(counts) - counts) // step
    return apply_table(x, table)


def warp_affine(x: np.ndarray, matrix: np.ndarray, fill: int | None) -> np.ndarray:
    """Bilinear warp: ``matrix`` f64[2, 3] maps pixels of the result to those of ``x``, relative to the center.

    Pixels from outside ``x`` have the gray level ``fill``, or if None that of the nearest pixel.
    """
    height, width = x.shape[:2]
    center = np.array([[(width - 1) / 2], [(height - 1) / 2]])
    linear, shift = matrix[:, :2], matrix[:, 2:]
    whole = np.hstack([linear, center - linear @ center + shift])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    border = cv2.BORDER_REPLICATE if fill is None else cv2.BORDER_CONSTANT
    return cv2.warpAffine(
        x, whole, (width, height), flags=flags, borderMode=border, borderValue=[0 if fill is None else fill] * 3
    )
