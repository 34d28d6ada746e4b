"""A box of a picture, brought to another size without aliasing.

``bicubic``  Pillow's antialiased filter, to the last gray level; boxes may be fractional. What evaluation uses.
``bilinear`` the same with a triangle.
``nearest``  for pictures whose values are labels.
``fast``     OpenCV, some five times as fast: a side that shrinks much is averaged over its whole pixels, one that
             shrinks by less is blurred in proportion, the rest is cubic interpolation. As close to Pillow's bicubic as
             Pillow's bilinear is.

OpenCV would split one small picture over all cores, which the threads and processes that read pictures already keep
busy: the first ``fast`` resampling sets its number of threads to one, for the whole process (``cv2.setNumThreads``).
"""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

Resample = Literal["fast", "bicubic", "bilinear", "nearest"]

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# The blur before cubic interpolation, chosen as the one nearest to Pillow's bicubic on pictures with texture and edges.
_BLUR_FROM = 1.15  # shrinking by less aliases little
_BLUR = 0.35  # standard deviation, of a pixel of the result
_BINOMIAL_FROM = 1.65  # 1 2 1 is then as near, and OpenCV has it in integers, in less than half the time
_LONGEST = 16  # times the side of the result: resizing the whole of a longer picture, to see a part, is not worth it
_TOLERANCE = 1e-6  # within which a number that was computed is a whole one
_AVERAGE_FROM = 2.7  # three taps are too short then; a JPEG has been decoded smaller before that, at ratios up to 4 : 3


def resampled(
    pixels: np.ndarray, box: tuple[float, float, float, float], *, size: tuple[int, int], resample: Resample
) -> np.ndarray:
    """``box`` (top, left, height, width) of u8[H, W, 3] as u8[*size, 3]."""
    height, width = pixels.shape[:2]
    # Boxes that were scaled may leave the picture by a rounding error.
    top, left = min(max(box[0], 0.0), height), min(max(box[1], 0.0), width)
    bottom, right = min(box[0] + box[2], float(height)), min(box[1] + box[3], float(width))
    if (bottom - top, right - left) == size and top == int(top) and left == int(left):
        return np.ascontiguousarray(pixels[int(top) : int(bottom), int(left) : int(right)])
    if resample == "fast":
        return _fast(pixels, (top, bottom), (left, right), size)
    if resample == "nearest":
        return _nearest(pixels, (top, bottom), (left, right), size)
    return _exact(pixels, (top, bottom), (left, right), size, resample)


def _exact(
    pixels: np.ndarray,
    rows: tuple[float, float],
    columns: tuple[float, float],
    size: tuple[int, int],
    resample: Literal["bicubic", "bilinear"],
) -> np.ndarray:
    down, across = (
        _window(*side, n, limit) for side, n, limit in zip((rows, columns), size, pixels.shape[:2], strict=True)
    )
    # Pillow is given the whole picture: which axis it takes first, and so what it rounds in between, depends on sizes.
    image = Image.fromarray(np.ascontiguousarray(pixels))
    box = (across.start, down.start, across.stop, down.stop)
    view = np.asarray(image.resize((across.length, down.length), _FILTERS[resample], box=box))
    return view[down.skip : down.skip + size[0], across.skip : across.skip + size[1]]


class _Window(NamedTuple):
    """One side of a box, to be brought to ``length`` pixels, of which the first to be kept is ``skip``."""

    start: float
    stop: float
    length: int
    skip: int = 0


def _window(start: float, stop: float, count: int, limit: int) -> _Window:
    """A side; where it shows some of a resized picture's pixels, as the resized picture and a place in it.

    That is what resizing and then cropping gives. Cutting the box out instead would cost one value in a hundred a gray
    level, or two: Pillow keeps fractional ends in single precision.
    """
    whole, first = limit * count / (stop - start), start * count / (stop - start)
    alike = all(abs(x - round(x)) < _TOLERANCE for x in (whole, first))
    if not alike or whole > _LONGEST * count:
        return _Window(start, stop, count)
    return _Window(0, limit, round(whole), round(first))


def _fast(
    pixels: np.ndarray, rows: tuple[float, float], columns: tuple[float, float], size: tuple[int, int]
) -> np.ndarray:
    _one_thread()
    spans = [_span(*side, n, limit) for side, n, limit in zip((rows, columns), size, pixels.shape[:2], strict=True)]
    pixels = pixels[spans[0].part, spans[1].part]
    averaged = tuple(
        n if span.averaged else length for span, n, length in zip(spans, size, pixels.shape[:2], strict=True)
    )
    if averaged != pixels.shape[:2]:
        pixels = cv2.resize(pixels, averaged[::-1], interpolation=cv2.INTER_AREA)
    down, across = (1.0 if span.averaged else span.length / n for span, n in zip(spans, size, strict=True))
    kernel = (3 if across > _BLUR_FROM else 1, 3 if down > _BLUR_FROM else 1)
    if min(across, down) > _BINOMIAL_FROM:
        pixels = cv2.GaussianBlur(pixels, kernel, 0)
    elif kernel != (1, 1):
        pixels = cv2.GaussianBlur(pixels, kernel, sigmaX=_BLUR * across, sigmaY=_BLUR * down)
    if not (spans[0].whole and spans[1].whole):
        first = [span.offset + scale / 2 - 0.5 for span, scale in zip(spans, (down, across), strict=True)]
        matrix = np.array([[across, 0, first[1]], [0, down, first[0]]])
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(pixels, matrix, size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return pixels if pixels.shape[:2] == size else cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_CUBIC)


class _Span(NamedTuple):
    """One side of a box, to be brought to some number of pixels."""

    part: slice  # the pixels that are looked at
    offset: float  # of the side, from where they start
    length: float
    averaged: bool
    whole: bool  # the side is these pixels, neither more nor less


def _span(start: float, stop: float, count: int, limit: int) -> _Span:
    averaged = stop - start > _AVERAGE_FROM * count
    if averaged or (start == int(start) and stop == int(stop)):
        first, last = math.floor(start + 0.5), math.floor(stop + 0.5)
        return _Span(slice(first, last), 0.0, last - first, averaged, True)
    part = slice(max(math.floor(start) - 2, 0), min(math.ceil(stop) + 2, limit))
    return _Span(part, start - part.start, stop - start, False, False)


def _nearest(
    pixels: np.ndarray, rows: tuple[float, float], columns: tuple[float, float], size: tuple[int, int]
) -> np.ndarray:
    at = []
    for (start, stop), count, limit in zip((rows, columns), size, pixels.shape[:2], strict=True):
        centers = start + (np.arange(count) + 0.5) * ((stop - start) / count)
        at.append(np.minimum(centers.astype(np.intp), limit - 1))
    return pixels[at[0][:, None], at[1]]


@functools.cache
def _one_thread() -> None:
    cv2.setNumThreads(1)
