"""Resizes a box of a picture without aliasing.

``bicubic``  Pillow's antialiased filter, exactly; boxes may be fractional. The default of evaluation.
``bilinear`` Pillow's triangle filter, likewise.
``nearest``  for pictures whose values are labels.
``fast``     OpenCV, about five times as fast: a side that shrinks much is averaged over whole pixels, one that shrinks
             less is blurred in proportion; then cubic interpolation. As close to Pillow's bicubic as its bilinear is.

OpenCV would split one small picture over all cores, which are already busy with other pictures. So the first ``fast``
resampling sets OpenCV's number of threads to one, for the whole process (``cv2.setNumThreads``).
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
# The blur before cubic interpolation, fitted to Pillow's bicubic on pictures with texture and edges.
_BLUR_FROM = 1.15  # smaller factors cause little aliasing
_BLUR = 0.35  # standard deviation, in pixels of the result
_BINOMIAL_FROM = 1.65  # the kernel 1 2 1 is then as close, and OpenCV computes it in integers, twice as fast
_MAX_RESIZED = 16  # times the side of the result: a longer picture is not resized as a whole
_TOLERANCE = 1e-6  # of a number that should be whole
_AVERAGE_FROM = 2.7  # three taps are too few then; most JPEG files were already decoded at a smaller size


def resampled(
    pixels: np.ndarray, box: tuple[float, float, float, float], *, size: tuple[int, int], resample: Resample
) -> np.ndarray:
    """``box`` (top, left, height, width) of u8[H, W, 3] as u8[*size, 3]."""
    height, width = pixels.shape[:2]
    # A scaled box may extend beyond the picture by a rounding error.
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
    # Pillow gets the whole picture, because its order of axes, and so its rounding, depends on the sizes.
    image = Image.fromarray(np.ascontiguousarray(pixels))
    box = (across.start, down.start, across.stop, down.stop)
    view = np.asarray(image.resize((across.length, down.length), _FILTERS[resample], box=box))
    return view[down.skip : down.skip + size[0], across.skip : across.skip + size[1]]


class _Window(NamedTuple):
    """One side of a box, to be resized to ``length`` pixels, of which the first ``skip`` are dropped."""

    start: float
    stop: float
    length: int
    skip: int = 0


def _window(start: float, stop: float, count: int, limit: int) -> _Window:
    """A side of a box: as a place in the resized picture, if the box starts and ends at whole pixels of that.

    Then the result equals resizing and then cropping. Resizing the box itself would change one value in a hundred by a
    gray level or two, because Pillow keeps fractional ends in single precision.
    """
    whole, first = limit * count / (stop - start), start * count / (stop - start)
    is_whole = all(abs(x - round(x)) < _TOLERANCE for x in (whole, first))
    if not is_whole or whole > _MAX_RESIZED * count:
        return _Window(start, stop, count)
    return _Window(0, limit, round(whole), round(first))


def _fast(
    pixels: np.ndarray, rows: tuple[float, float], columns: tuple[float, float], size: tuple[int, int]
) -> np.ndarray:
    _use_one_thread()
    spans = [_span(*side, n, limit) for side, n, limit in zip((rows, columns), size, pixels.shape[:2], strict=True)]
    pixels = pixels[spans[0].pixels, spans[1].pixels]
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
    """One side of a box that is to be resized."""

    pixels: slice  # the source pixels that are needed
    offset: float  # of the side, from the first of these
    length: float
    averaged: bool
    whole: bool  # the side is exactly these pixels


def _span(start: float, stop: float, count: int, limit: int) -> _Span:
    averaged = stop - start > _AVERAGE_FROM * count
    if averaged or (start == int(start) and stop == int(stop)):
        first, last = math.floor(start + 0.5), math.floor(stop + 0.5)
        return _Span(slice(first, last), 0.0, last - first, averaged, True)
    pixels = slice(max(math.floor(start) - 2, 0), min(math.ceil(stop) + 2, limit))
    return _Span(pixels, start - pixels.start, stop - start, False, False)


def _nearest(
    pixels: np.ndarray, rows: tuple[float, float], columns: tuple[float, float], size: tuple[int, int]
) -> np.ndarray:
    indices = []
    for (start, stop), count, limit in zip((rows, columns), size, pixels.shape[:2], strict=True):
        centers = start + (np.arange(count) + 0.5) * ((stop - start) / count)
        indices.append(np.minimum(centers.astype(np.intp), limit - 1))
    return pixels[indices[0][:, None], indices[1]]


@functools.cache
def _use_one_thread() -> None:
    cv2.setNumThreads(1)
