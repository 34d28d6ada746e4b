"""Decodes pictures: their size from the header alone, and the pixels of a crop.

JPEG is decoded by libjpeg-turbo, other formats by Pillow. Pixels are those of Pillow's ``Image.convert("RGB")``: gray
is repeated, CMYK is converted (also Adobe's inverted files), and of animations the first frame is used. There are three
differences: transparent pictures are put on a background, pictures with an Exif orientation are rotated upright, and
16-bit gray keeps its high byte instead of being clipped.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from mmjax.data.pictures.channels import WHITE, Color, add_alpha, to_rgb, to_three_channels
from mmjax.data.pictures.resampling import resampled
from mmjax.data.sample import Crop, Reason, Unreadable

MAX_PIXELS = 178_956_970
"""Larger pictures are rejected by their header; Pillow suspects a decompression bomb at the same size."""

MAX_SCANS = 100
"""JPEG files of more scans are rejected: each scan costs the time of a whole picture, however few bytes it has."""

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""The formats that Pillow may read; none of them starts another program."""

# Pillow logs details of damaged files, which would be printed: libraries put a handler on the root logger.
logging.getLogger("PIL").addHandler(logging.NullHandler())
logging.getLogger("PIL").propagate = False

_JPEG = b"\xff\xd8\xff"
_BASELINE, _BARE = (0xC0, 0xC1), (0x00, 0x01, *range(0xD0, 0xDA), 0xFF)  # markers; bare ones begin no segment
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_ORIENTATION = 0x0112
_UPSIDE_DOWN, _MIRRORED = (3, 4, 7, 8), (2, 3, 6, 7)
# Warnings of libjpeg for files with all their pixels. Pillow decodes these files, and still rejects truncated ones.
_HARMLESS = ("extraneous bytes before marker", "Unknown Adobe", "unknown JFIF", "Invalid SOS parameters", "ICC")
_TRUNCATED = ("truncated", "premature end", "unexpected end", "not enough", "eof")


def size_of(data: bytes | np.ndarray, *, key: str = "") -> tuple[int, int]:
    """Height and width of the upright picture, from its header; raises ``Unreadable`` with that ``key``."""
    if isinstance(data, np.ndarray):
        return data.shape[0], data.shape[1]
    if data[:3] == _JPEG:
        header = _jpeg_header(data)
        if header is not None:
            height, width, _ = header
            _check_size(height, width, key)
            return (width, height) if _jpeg_orientation(data) > 4 else (height, width)
    with _reading(data, key) as image:
        return (image.width, image.height) if _orientation(image, data) > 4 else (image.height, image.width)


def has_alpha(data: bytes | np.ndarray, *, key: str = "") -> bool:
    """Whether a picture may have transparent pixels, by its header; raises ``Unreadable`` with that ``key``."""
    if isinstance(data, np.ndarray) or data[:3] == _JPEG:
        return False
    with _reading(data, key) as image:
        return image.has_transparency_data


def decode(
    data: bytes | np.ndarray, crop: Crop | None = None, *, key: str = "", background: Color | None = WHITE
) -> np.ndarray:
    """Decodes a picture, upright, and crops it.

    With ``resample="fast"``, a JPEG is decoded at a half, a quarter or an eighth of its size, if the crop's box then
    still has as many pixels as the view. Otherwise it is decoded in full, and ``bicubic`` and ``bilinear`` equal
    Pillow's.

    Args:
      data: an encoded picture, or u8[H, W, C] with one or three channels.
      crop: the region and size of the view; the whole picture if None.
      key: of the example, for ``Unreadable``.
      background: what transparent pictures are put on. None: alpha is kept as a fourth channel of all pictures.

    Returns:
      u8[H, W, 3], or u8[H, W, 4] without a background; possibly read-only.
    """
    if isinstance(data, np.ndarray):
        pixels, factor, above, before = _Decoded(add_alpha(to_three_channels(data, key), background))
    elif data[:3] == _JPEG:
        pixels, factor, above, before = _jpeg(data, crop, key, background)
    else:
        pixels, factor, above, before = _Decoded(_pillow(data, key, background))
    if crop is None:
        return np.ascontiguousarray(pixels)
    box = (above + crop.top / factor, before + crop.left / factor, crop.height / factor, crop.width / factor)
    # Only Pillow lets colors count as much as they are opaque.
    resample = "bicubic" if background is None and crop.resample == "fast" else crop.resample
    view = resampled(pixels, box, size=crop.inner, resample=resample)
    if crop.inner == crop.size:
        return view
    padded = add_alpha(np.full((*crop.size, 3), crop.fill, np.uint8), background)
    top, left = crop.offset
    padded[top : top + crop.inner[0], left : left + crop.inner[1]] = view
    return padded


class _Decoded(NamedTuple):
    """Upright pixels, perhaps reduced: each one covers ``factor`` x ``factor`` pixels of the original."""

    pixels: np.ndarray
    factor: int = 1
    above: float = 0.0  # the row where the original begins in them
    before: float = 0.0  # and the column


def _jpeg(data: bytes, crop: Crop | None, key: str, background: Color | None) -> _Decoded:
    _check_scans(data, key)
    header = _jpeg_header(data)
    orientation = _jpeg_orientation(data)
    if header is None or header[2] in ("CMYK", "YCCK"):
        return _Decoded(_pillow(data, key, background))
    height, width, _ = header
    _check_size(height, width, key)
    factor = 1
    if crop is not None and crop.resample == "fast":
        shrink = min(crop.height / crop.inner[0], crop.width / crop.inner[1])
        # Only powers of two: libjpeg-turbo's other scales are slower than decoding in full.
        factor = next(f for f in (8, 4, 2, 1) if f <= shrink or f == 1)
    try:
        pixels = simplejpeg.decode_jpeg(data, min_height=-(-height // factor), min_width=-(-width // factor))
    except ValueError as error:
        if not any(word in str(error) for word in _HARMLESS):
            raise Unreadable(_reason(error), str(error), key=key) from None
        return _Decoded(_pillow(data, key, background))
    # The last row and column of reduced pixels may extend beyond the original; in a mirrored picture they come first.
    full_height, full_width = (width, height) if orientation > 4 else (height, width)
    pixels = add_alpha(_upright(pixels, orientation), background)
    above = pixels.shape[0] - full_height / factor if orientation in _UPSIDE_DOWN else 0.0
    before = pixels.shape[1] - full_width / factor if orientation in _MIRRORED else 0.0
    return _Decoded(pixels, factor, above, before)


def _jpeg_header(data: bytes) -> tuple[int, int, str] | None:
    """Stored height, width and color space; None if only Pillow can read the header."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # the latter: a subsampling that has no name
        return None
    return height, width, space


def _jpeg_orientation(data: bytes) -> int:
    """The Exif orientation, 1 to 8; 1 if there is none or it is invalid."""
    for marker, start, end in _jpeg_segments(data):
        if marker == 0xE1 and data[start : start + 6] == b"Exif\0\0":
            try:
                return _exif_orientation(data[start + 6 : end])
            except struct.error:
                return 1
    return 1


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment up to the first scan's header, or to what is no segment."""
    offset, marker = 2, 0
    while marker != 0xDA and data[offset : offset + 1] == b"\xff" and len(data) >= offset + 4:
        marker, end = data[offset + 1], offset + 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        yield marker, offset + 4, end
        offset = end


def _exif_orientation(exif: bytes) -> int:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    (start,) = struct.unpack_from(order + "I", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, start)
    for offset in range(start + 2, start + 2 + 12 * count, 12):
        tag, _, _, value = struct.unpack_from(order + "HHIH", exif, offset)
        if tag == _ORIENTATION:
            return value if 1 <= value <= 8 else 1
    return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of the stored pixels, rotated and mirrored as the orientation says."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    down = -1 if orientation in _UPSIDE_DOWN else 1
    across = -1 if orientation in _MIRRORED else 1
    return pixels[::down, ::across] if orientation > 1 else pixels


def _pillow(data: bytes, key: str, background: Color | None) -> np.ndarray:
    with _reading(data, key) as image:
        image.load()
        return _upright(to_rgb(image, background), _orientation(image, data))


@contextlib.contextmanager
def _reading(data: bytes, key: str) -> Iterator[Image.Image]:
    """The picture opened with Pillow; all errors become ``Unreadable``."""
    if not data:
        raise Unreadable("empty image", key=key)
    try:
        with _ignore_warnings, Image.open(io.BytesIO(data), formats=_formats()) as image:
            _check_size(image.height, image.width, key)
            yield image
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable("image too large", str(error), key=key) from None
    # Pillow raises almost anything for damaged files: OSError, SyntaxError, struct.error, MemoryError, …
    except Exception as error:
        truncated = data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data)
        unknown = isinstance(error, Image.UnidentifiedImageError)
        detail = f"not one of {', '.join(_formats())}" if unknown else f"{type(error).__name__}: {error}"
        raise Unreadable("truncated image" if truncated else _reason(error), detail, key=key) from None


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # older versions of Pillow lack some


def _orientation(image: Image.Image, data: bytes) -> int:
    if data[:3] == _JPEG:
        return _jpeg_orientation(data)  # the same parser for all JPEG files, damaged ones too
    if image.format == "TIFF":
        return 1  # Pillow rotates these itself
    # Pillow would decode a whole PNG to look for it.
    if image.format == "PNG" and b"eXIf" not in data and b"Raw profile type exif" not in data:
        return 1
    value = image.getexif().get(_ORIENTATION)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _check_size(height: int, width: int, key: str) -> None:
    if height * width > MAX_PIXELS:
        raise Unreadable("image too large", f"{width} x {height}, more than {MAX_PIXELS} pixels", key=key)


def _check_scans(data: bytes, key: str) -> None:
    components = 0
    for marker, start, _ in _jpeg_segments(data):
        if marker in _BASELINE:
            components = data[start + 5] if len(data) > start + 5 else 0
        elif marker == 0xDA and components and data[start : start + 1] == bytes([components]):
            return  # all components are in the first scan, and libjpeg reads no other
        elif marker in _BARE:
            break
    values = np.frombuffer(data, np.uint8)
    marks = np.flatnonzero(values[:-1] == 0xFF)
    if np.count_nonzero(values[marks + 1] == 0xDA) <= MAX_SCANS:
        return
    # What follows the picture, such as a film, is none of it.
    scans, offset = 0, 2
    while (match := _MARKER.search(data, offset)) is not None and match[0] != b"\xff\xd9":
        scans += match[0] == b"\xff\xda"
        if scans > MAX_SCANS:
            raise Unreadable("corrupt image", f"more than {MAX_SCANS} scans", key=key)
        offset = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")


def _reason(error: Exception) -> Reason:
    text = str(error).lower()
    return (
        "truncated image"
        if isinstance(error, EOFError) or any(word in text for word in _TRUNCATED)
        else "corrupt image"
    )


class _IgnoreWarnings:
    """A context manager, shared by threads, in which warnings of Pillow's modules are ignored.

    ``warnings.catch_warnings`` alone is not enough: overlapping threads would restore each other's filters. Here the
    first thread to enter saves the filters, and the last one to leave restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._saved.__exit__(None, None, None)


_ignore_warnings = _IgnoreWarnings()
