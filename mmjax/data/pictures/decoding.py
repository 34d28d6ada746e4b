"""From the bytes of a picture to pixels: its size without decoding it, and the part of it that a crop asks for.

JPEG goes through libjpeg-turbo, other formats through Pillow. Pixels are what ``Image.convert("RGB")`` gives, as users
of Pillow and torchvision know them: transparency is dropped and the colors beneath are kept, gray is repeated, CMYK is
converted as Pillow does (Adobe's inverted files too), of animations the first frame is taken. Different are pictures
that carry an orientation, which are turned upright, and 16-bit gray, of which the high byte is taken instead of
clipping.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from mmjax.data.pictures.resampling import resampled
from mmjax.data.sample import Crop, Reason, Unreadable

MAX_PIXELS = 178_956_970
"""More are refused by the header alone; it is where Pillow, too, suspects a decompression bomb."""

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""What Pillow may read; nothing that would start another program."""

# Pillow logs what else is wrong with a damaged file; without any handler, that would be printed.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_JPEG = b"\xff\xd8\xff"
_ORIENTATION = 0x0112
_UPSIDE_DOWN, _MIRRORED = (3, 4, 7, 8), (2, 3, 6, 7)
# What libjpeg warns of though all pixels are there. Pillow judges these, and still refuses what is cut short.
_HARMLESS = ("extraneous bytes before marker", "Unknown Adobe", "unknown JFIF", "Invalid SOS parameters", "ICC")
_SHORT = ("truncated", "premature end", "unexpected end", "not enough", "eof")


def size_of(data: bytes | np.ndarray, *, key: str = "") -> tuple[int, int]:
    """Height and width of the upright picture, from its header."""
    if isinstance(data, np.ndarray):
        return data.shape[0], data.shape[1]
    if data[:3] == _JPEG:
        header = _jpeg_header(data)
        if header is not None:
            height, width, _ = header
            _limit(height, width, key)
            return (width, height) if _jpeg_orientation(data) > 4 else (height, width)
    with _reading(data, key) as image:
        return (image.width, image.height) if _orientation(image, data) > 4 else (image.height, image.width)


def decode(data: bytes | np.ndarray, crop: Crop | None = None, *, key: str = "") -> np.ndarray:
    """The picture upright, or its view through ``crop``: u8[H, W, 3], possibly read-only.

    ``data`` is an encoded picture or u8[H, W, C] with one or three channels. JPEG is decoded at a half, a quarter or an
    eighth of its size for ``resample="fast"`` where the crop's box then still has as many pixels as the result, and in
    full otherwise: ``bicubic`` and ``bilinear`` equal Pillow's. Raises ``Unreadable``, whose ``key`` is ``key``.
    """
    if isinstance(data, np.ndarray):
        pixels, factor, above, before = _Decoded(_three_channels(data, key))
    elif data[:3] == _JPEG:
        pixels, factor, above, before = _jpeg(data, crop, key)
    else:
        pixels, factor, above, before = _Decoded(_pillow(data, key))
    if crop is None:
        return np.ascontiguousarray(pixels)
    box = (above + crop.top / factor, before + crop.left / factor, crop.height / factor, crop.width / factor)
    view = resampled(pixels, box, size=crop.inner, resample=crop.resample)
    if crop.inner == crop.size:
        return view
    padded = np.full((*crop.size, 3), crop.fill, np.uint8)
    top, left = crop.offset
    padded[top : top + crop.inner[0], left : left + crop.inner[1]] = view
    return padded


class _Decoded(NamedTuple):
    """Upright pixels, each of which is ``factor`` of the original's high and wide."""

    pixels: np.ndarray
    factor: int = 1
    above: float = 0.0  # where the original begins in them
    before: float = 0.0


def _jpeg(data: bytes, crop: Crop | None, key: str) -> _Decoded:
    header = _jpeg_header(data)
    orientation = _jpeg_orientation(data)
    if header is None or header[2] in ("CMYK", "YCCK"):
        return _Decoded(_pillow(data, key))
    height, width, _ = header
    _limit(height, width, key)
    factor = 1
    if crop is not None and crop.resample == "fast":
        shrink = min(crop.height / crop.inner[0], crop.width / crop.inner[1])
        # Only powers of two: libjpeg-turbo's other scales take longer than the whole picture.
        factor = next(f for f in (8, 4, 2, 1) if f <= shrink or f == 1)
    try:
        pixels = simplejpeg.decode_jpeg(data, min_height=-(-height // factor), min_width=-(-width // factor))
    except ValueError as error:
        if not any(word in str(error) for word in _HARMLESS):
            raise Unreadable(_reason(error), str(error), key=key) from None
        return _Decoded(_pillow(data, key))
    # The last row and column of reduced pixels may reach beyond the original, and come first where it is mirrored.
    tall, wide = (width, height) if orientation > 4 else (height, width)
    pixels = _upright(pixels, orientation)
    above = pixels.shape[0] - tall / factor if orientation in _UPSIDE_DOWN else 0.0
    before = pixels.shape[1] - wide / factor if orientation in _MIRRORED else 0.0
    return _Decoded(pixels, factor, above, before)


def _jpeg_header(data: bytes) -> tuple[int, int, str] | None:
    """Stored height, width and color space; None where libjpeg-turbo cannot tell, and Pillow has to."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # the latter: a subsampling that has no name
        return None
    return height, width, space


def _jpeg_orientation(data: bytes) -> int:
    """The Exif orientation, 1 to 8; 1 where there is none that can be understood."""
    at = 2
    try:
        while data[at] == 0xFF and data[at + 1] != 0xDA:  # start of scan: the pixels
            (length,) = struct.unpack_from(">H", data, at + 2)
            if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
                return _exif_orientation(data[at + 10 : at + 2 + length])
            at += 2 + length
    except (struct.error, IndexError):
        pass
    return 1


def _exif_orientation(exif: bytes) -> int:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    (start,) = struct.unpack_from(order + "I", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, _, _, value = struct.unpack_from(order + "HHIH", exif, at)
        if tag == _ORIENTATION:
            return value if 1 <= value <= 8 else 1
    return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of stored pixels as the picture is to be seen."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    down = -1 if orientation in _UPSIDE_DOWN else 1
    across = -1 if orientation in _MIRRORED else 1
    return pixels[::down, ::across] if orientation > 1 else pixels


def _pillow(data: bytes, key: str) -> np.ndarray:
    with _reading(data, key) as image:
        image.load()
        return _upright(_rgb(image), _orientation(image, data))


@contextlib.contextmanager
def _reading(data: bytes, key: str) -> Iterator[Image.Image]:
    """The picture as Pillow opens it; whatever goes wrong with it is ``Unreadable``."""
    if not data:
        raise Unreadable("empty image", key=key)
    try:
        with _quiet, Image.open(io.BytesIO(data), formats=_formats()) as image:
            _limit(image.height, image.width, key)
            yield image
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable("image too large", str(error), key=key) from None
    # Damaged files make Pillow raise almost anything: OSError, SyntaxError, struct.error, MemoryError, …
    except Exception as error:
        cut = data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data)
        unknown = isinstance(error, Image.UnidentifiedImageError)
        detail = f"not one of {', '.join(_formats())}" if unknown else f"{type(error).__name__}: {error}"
        raise Unreadable("truncated image" if cut else _reason(error), detail, key=key) from None


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # older versions of Pillow do not know all of them


def _rgb(image: Image.Image) -> np.ndarray:
    """A loaded picture's stored pixels as u8[H, W, 3]."""
    mode = image.mode
    if mode == "I" or mode.startswith("I;16"):
        values = np.asarray(image)
        if values.size and not 0 <= values.min() <= values.max() <= 0xFFFF:
            raise ValueError("32-bit pixels, of which nobody says what white is")
        return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if mode == "F":
        raise ValueError("floating-point pixels, of which nobody says what white is")
    return np.asarray(image if mode == "RGB" else image.convert("RGB"))


def _orientation(image: Image.Image, data: bytes) -> int:
    if data[:3] == _JPEG:
        return _jpeg_orientation(data)  # of what is damaged, always the same is understood
    if image.format == "TIFF":
        return 1  # Pillow turns these itself
    # Pillow would decode a whole PNG in search of it.
    if image.format == "PNG" and b"eXIf" not in data and b"Raw profile type exif" not in data:
        return 1
    value = image.getexif().get(_ORIENTATION)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _three_channels(pixels: np.ndarray, key: str) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise Unreadable("corrupt image", f"{pixels.dtype}{list(pixels.shape)}, not uint8[H, W, 1 or 3]", key=key)
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)


def _limit(height: int, width: int, key: str) -> None:
    if height * width > MAX_PIXELS:
        raise Unreadable("image too large", f"{width} x {height}, more than {MAX_PIXELS} pixels", key=key)


def _reason(error: Exception) -> Reason:
    text = str(error).lower()
    return "truncated image" if isinstance(error, EOFError) or any(word in text for word in _SHORT) else "corrupt image"


class _Quiet:
    """While anybody is inside, warnings that Pillow's modules raise are ignored.

    ``warnings.catch_warnings`` restores what it found, so threads that overlap would leave each other's filters behind:
    here the first one in saves them and the last one out restores them.
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


_quiet = _Quiet()
