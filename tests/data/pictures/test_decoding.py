from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from mmjax.core.config import ConfigError
from mmjax.data.pictures import decode, decoding, has_alpha, parse_background, size_of
from mmjax.data.sample import REASONS, Crop, Unreadable
from support.pictures import encoded, opened, photograph

ODD = [(97, 131), (131, 97), (64, 300), (33, 33)]


def crop(top, left, height, width, size=24, **options):
    return Crop(top, left, height, width, size=(size, size), inner=(size, size), **options)


@pytest.mark.parametrize("size", ODD)
@pytest.mark.parametrize(
    "kind, options",
    [
        ("JPEG", {"quality": 90}),
        ("JPEG", {"quality": 90, "subsampling": 2}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
    ],
)
def test_whole_pictures_equal_pillows(kind, options, size):
    data = encoded(photograph(*size), kind, **options)
    got = decode(data)
    assert got.dtype == np.uint8 and got.flags.c_contiguous
    np.testing.assert_array_equal(got, np.asarray(opened(data)))
    assert size_of(data) == size


@pytest.mark.parametrize(
    "kind, mode", [("JPEG", m) for m in ("L", "CMYK", "YCbCr")] + [("PNG", m) for m in ("1", "L", "LA", "P", "RGBA")]
)
def test_other_modes_become_what_pillow_says(kind, mode):
    picture = Image.fromarray(photograph(40, 50))
    data = encoded(picture.convert(mode), kind)
    got = decode(data)
    np.testing.assert_array_equal(got, np.asarray(opened(data)))
    assert got.shape == (40, 50, 3) and size_of(data) == (40, 50)


def test_adobe_cmyk_is_not_a_negative():
    picture = np.full((32, 32, 3), (200, 120, 40), np.uint8)
    got = decode(encoded(Image.fromarray(picture).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(got.astype(int) - picture).max() <= 6


def test_transparent_pictures_are_put_on_a_background():
    palette = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) % 3, "L").convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    index = np.arange(16).reshape(4, 4) % 3
    red, blue, half_green = [255, 0, 0], [0, 0, 255], [127, 255, 127]
    white, black = [255] * 3, [0] * 3
    png, gif = encoded(palette, "PNG", transparency=bytes([0, 128, 255])), encoded(palette, "GIF", transparency=1)
    for data, background, colors in (
        (png, white, (white, half_green, blue)),
        (png, red, (red, [127, 128, 0], blue)),
        (gif, white, (red, white, blue)),
        (gif, black, (red, black, blue)),
    ):
        got = decode(data, background=tuple(background))
        np.testing.assert_array_equal(got, np.array(colors, np.uint8)[index])
    clear = np.dstack([np.full((4, 4, 3), 77, np.uint8), np.zeros((4, 4), np.uint8)])
    for kind in ("PNG", "WEBP", "TIFF"):
        data = encoded(clear, kind)
        assert (decode(data) == 255).all() and has_alpha(data)
        for part in (None, crop(0, 0, 4, 4, resample="fast")):
            assert (decode(data, part, background=(1, 2, 3)) == (1, 2, 3)).all()
    half = Image.new("LA", (3, 2), (100, 128))
    assert set(decode(encoded(half, "PNG")).ravel()) <= {177, 178} and not has_alpha(encoded(photograph(4, 4)))
    gray = encoded(Image.fromarray(np.array([[0, 1000]], np.uint16)), "PNG", transparency=1000)
    assert decode(gray)[0].tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_opaque_pictures_keep_their_bits(mode):
    options = {"transparency": bytes([255] * 256)} if mode == "P" else {}
    picture = Image.fromarray(photograph(40, 50)).convert(mode)
    data = encoded(picture, "PNG", **options)
    for background in ((255, 255, 255), (9, 8, 7)):
        np.testing.assert_array_equal(decode(data, background=background), np.asarray(picture.convert("RGB")))


def test_alpha_is_kept_as_a_fourth_channel():
    alpha = photograph(40, 50, seed=1)[..., 0]
    picture = Image.fromarray(np.dstack([photograph(40, 50), alpha]))
    data = encoded(picture, "PNG")
    np.testing.assert_array_equal(decode(data, background=None), np.asarray(picture))
    for resample in ("fast", "bicubic"):
        view = decode(data, crop(0, 0, 40, 40, resample=resample), background=None)
        expected = picture.resize((24, 24), Image.Resampling.BICUBIC, box=(0, 0, 40, 40))
        assert np.abs(view.astype(int) - np.asarray(expected)).max() <= 1
    padded = Crop(0, 0, 40, 50, (30, 24), (20, 24), (5, 0), "fast", 9)
    for other in (encoded(photograph(40, 50)), encoded(photograph(40, 50), "BMP"), photograph(40, 50)):
        got = decode(other, padded, background=None)
        assert got.shape == (30, 24, 4) and (got[..., 3] == 255).all() and (got[0, :, :3] == 9).all()
        assert decode(other, background=None).shape == (40, 50, 4)


def test_backgrounds_that_are_no_colors():
    for name in ("whit", "", "#12345", "#12345678", "(1, 2, 3)"):
        with pytest.raises(ConfigError, match=rf"data\.background={re.escape(repr(name))}: not a color"):
            parse_background(name)


def test_sixteen_bit_gray_is_scaled_not_clipped():
    values = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    expected = np.repeat((values // 256).astype(np.uint8)[..., None], 3, axis=2)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(encoded(Image.fromarray(values), kind)), expected)
    header = b"P5 64 64 65535\n"
    np.testing.assert_array_equal(decode(header + values.astype(">u2").tobytes()), expected)


def test_sixteen_bit_color_keeps_the_high_byte():
    random = np.random.default_rng(0)
    values = random.integers(0, 65536, (5, 7, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    data = png(7, 5, depth=16, color=2, rows=rows)
    np.testing.assert_array_equal(decode(data), (values >> 8).astype(np.uint8))


def test_pixels_without_a_white_are_refused():
    for values in (np.ones((4, 4), np.float32), np.full((4, 4), 1 << 20, np.int32), np.full((4, 4), -1, np.int32)):
        with pytest.raises(Unreadable, match="white") as error:
            decode(encoded(Image.fromarray(values), "TIFF"))
        assert error.value.reason == "corrupt image"


def test_of_animations_the_first_frame_is_taken():
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "green", "blue")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(decode(data), np.asarray(frames[0]))
        assert size_of(data) == (10, 20)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_all_orientations_are_turned_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    options = {"quality": 92} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(photograph(60, 90), kind, exif=exif, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(decode(data), np.asarray(upright))
    assert size_of(data) == (upright.height, upright.width)
    assert size_of(data) == ((60, 90) if orientation < 5 else (90, 60))
    for resample, filter_ in (("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)):
        view = decode(data, crop(5, 8, 40, 50, resample=resample))
        expected = np.asarray(upright.resize((24, 24), filter_, box=(8, 5, 58, 45)))
        assert np.abs(view.astype(int) - expected).max() <= 1
    # The reduced decoding of the fast path has to look at the same place.
    fast = decode(data, crop(5, 8, 52, 50, size=12, resample="fast"))
    slow = decode(data, crop(5, 8, 52, 50, size=12, resample="bicubic"))
    assert np.abs(fast.astype(int) - slow).mean() < 6


def test_exif_that_makes_no_sense_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photograph(20, 30), exif=exif)
    at = data.index(b"Exif\0\0") + 6
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in random.integers(at, at + 24, 3):
            damaged[place] = random.integers(256)
        assert size_of(bytes(damaged)) in ((20, 30), (30, 20))
        assert decode(bytes(damaged)).shape[:2] == size_of(bytes(damaged))
    for value in (0, 9, 65535):
        exif[0x0112] = value
        assert size_of(encoded(photograph(20, 30), exif=exif)) == (20, 30)


@pytest.mark.parametrize("box", [(0, 0, 97, 131), (3, 10, 90, 100), (1.25, 2.5, 60.75, 71.1), (40, 40, 10, 12.5)])
@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_exact_resampling_is_pillows_also_in_fractional_boxes(box, resample):
    picture = photograph(97, 131)
    expected = Image.fromarray(picture).resize(
        (24, 24),
        getattr(Image.Resampling, resample.upper()),
        box=(box[1], box[0], box[1] + box[3], box[0] + box[2]),
    )
    for data in (picture, encoded(picture, "PNG")):
        got = decode(data, crop(*box, resample=resample))
        difference = np.abs(got.astype(int) - np.asarray(expected))
        assert difference.max() <= 1 and difference.mean() < 0.01


def test_nearest_invents_no_labels():
    random = np.random.default_rng(0)
    labels = random.choice([3, 90, 250], (50, 70, 1)).astype(np.uint8)
    got = decode(labels, crop(4.5, 7.25, 40, 50.5, resample="nearest"))
    assert set(np.unique(got)) <= {3, 90, 250}
    rows = np.floor(4.5 + (np.arange(24) + 0.5) * 40 / 24).astype(int)
    columns = np.floor(7.25 + (np.arange(24) + 0.5) * 50.5 / 24).astype(int)
    np.testing.assert_array_equal(got, labels[rows][:, columns].repeat(3, axis=2))
    np.testing.assert_array_equal(
        decode(encoded(labels[..., 0], "PNG"), crop(4.5, 7.25, 40, 50.5, resample="nearest")), got
    )


def test_padding_goes_around_the_view():
    picture = photograph(60, 30)
    padded = Crop(0, 0, 60, 30, size=(20, 20), inner=(20, 10), offset=(0, 5), fill=9)
    got = decode(picture, padded)
    assert got.shape == (20, 20, 3) and (got[:, :5] == 9).all() and (got[:, 15:] == 9).all()
    np.testing.assert_array_equal(got[:, 5:15], np.asarray(Image.fromarray(picture).resize((10, 20), 3)))


@pytest.mark.parametrize("resample", ["fast", "bicubic", "bilinear", "nearest"])
def test_a_crop_of_the_same_size_copies_pixels(resample):
    picture = photograph(40, 50)
    got = decode(picture, crop(7, 9, 24, 24, resample=resample))
    np.testing.assert_array_equal(got, picture[7:31, 9:33])


@pytest.mark.parametrize("resample", ["fast", "bicubic", "bilinear", "nearest"])
def test_a_constant_picture_stays_constant(resample):
    for size in ((24, 24), (31, 47), (100, 100), (9, 200), (3, 2), (1, 1)):
        got = decode(np.full((*size, 3), 177, np.uint8), crop(0, 0, *size, resample=resample))
        assert got.shape == (24, 24, 3) and (got == 177).all()


def test_fast_is_near_to_pillows_bicubic():
    for size in (20, 50, 60, 75, 90, 110, 130, 200, 330):
        picture = photograph(size, size, seed=size)
        shape = {"size": 48, "resample": "fast"}
        fast, exact, triangle = (
            decode(picture, crop(0, 0, size, size, **(shape | {"resample": r}))).astype(float)
            for r in ("fast", "bicubic", "bilinear")
        )
        error = np.abs(fast - exact).mean()
        assert error < np.abs(triangle - exact).mean(), size
        plain = picture[np.arange(48) * size // 48][:, np.arange(48) * size // 48]
        assert error < 0.5 * np.abs(plain - exact).mean() or size < 48


@pytest.mark.parametrize("scale", [1.3, 1.5, 1.75, 1.9, 2.1, 2.6, 3.3, 7.0])
def test_fast_attenuates_what_the_result_cannot_show(scale):
    size = round(96 * scale)
    y, x = np.mgrid[:size, :size]
    checkerboard = np.repeat((255.0 * ((x + y) % 2))[..., None], 3, axis=2).astype(np.uint8)
    frequency = min(0.5, 0.75 / scale)  # cycles a pixel, half as high again as the highest that the result can show
    grating = np.repeat((127.5 + 127.5 * np.cos(2 * np.pi * frequency * x))[..., None], 3, axis=2).astype(np.uint8)
    spread = {}
    for name, picture in (("checkerboard", checkerboard), ("grating", grating)):
        got = decode(picture, crop(0, 0, size, size, size=96, resample="fast"))[8:-8, 8:-8].astype(float)
        spread[name] = got.std() / picture.std()
        assert abs(got.mean() - picture.mean()) < 3
    assert spread["checkerboard"] < 0.25
    assert spread["grating"] < 0.6


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 8, 11])
def test_reduced_decoding_looks_at_the_same_place(factor):
    picture = photograph(24 * factor + 37, 24 * factor + 53, seed=factor)
    data = encoded(picture, quality=95)
    part = crop(19, 31, 24 * factor, 24 * factor, resample="fast")
    fast = decode(data, part).astype(float)
    exact = decode(data, part._replace(resample="bicubic")).astype(float)
    assert np.abs(fast - exact).mean() < 6
    # A view of the place one pixel of the result beside it would be far off.
    moved = decode(data, part._replace(resample="bicubic", left=31 - factor)).astype(float)
    assert np.abs(fast - exact).mean() < 0.6 * np.abs(fast - moved).mean()


def test_jpeg_is_decoded_once_and_no_larger_than_needed(monkeypatch):
    data = encoded(photograph(400, 500))
    shapes = []
    plain = simplejpeg.decode_jpeg

    def spy(*args, **options):
        shapes.append(plain(*args, **options).shape[:2])
        return plain(*args, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    for part, expected in (
        (crop(0, 0, 400, 500, size=224, resample="fast"), (400, 500)),
        (crop(0, 0, 400, 500, size=200, resample="fast"), (200, 250)),
        (crop(0, 0, 399, 500, size=200, resample="fast"), (400, 500)),
        (crop(0, 0, 400, 500, size=64, resample="fast"), (100, 125)),
        (crop(0, 0, 400, 500, size=24, resample="fast"), (50, 63)),
        (crop(100, 100, 48, 48, size=24, resample="fast"), (200, 250)),
        (crop(0, 0, 400, 500, size=24, resample="bicubic"), (400, 500)),
        (None, (400, 500)),
    ):
        shapes.clear()
        decode(data, part)
        assert shapes == [expected]


def test_arrays_pass_through_and_are_never_written_to():
    picture = photograph(30, 40)
    picture.setflags(write=False)
    assert decode(picture) is picture or np.shares_memory(decode(picture), picture)
    assert size_of(picture) == (30, 40)
    gray = decode(picture[..., :1])
    np.testing.assert_array_equal(gray, picture[..., :1].repeat(3, axis=2))
    decode(picture, crop(1, 2, 20, 20, resample="fast"))
    for wrong in (picture.astype(np.float32), picture[..., 0], picture[..., :2], picture[:0]):
        with pytest.raises(Unreadable) as error:
            decode(wrong, key="k")
        assert error.value.reason == "corrupt image" and error.value.key == "k"


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty image"),
        (b"\0" * 500, "corrupt image"),
        (b"<html>not found</html>", "corrupt image"),
        (b"\xff\xd8\xff", "corrupt image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "corrupt image"),
        (encoded(photograph(60, 60))[:-300], "truncated image"),
        (encoded(photograph(60, 60), progressive=True)[:-300], "truncated image"),
        (encoded(photograph(60, 60), "PNG")[:-300], "truncated image"),
        (encoded(photograph(60, 60), "WEBP")[:-100], "truncated image"),
        (encoded(photograph(60, 60), "GIF")[:900], "truncated image"),
        (encoded(photograph(60, 60), "BMP")[:900], "truncated image"),
    ],
)
def test_what_cannot_be_read_says_why(data, reason):
    for part in (None, crop(0, 0, 60, 60, resample="fast"), crop(0, 0, 60, 60)):
        with pytest.raises(Unreadable) as error:
            decode(data, part, key="shard.tar/7.jpg")
        assert error.value.reason == reason
        assert error.value.key == "shard.tar/7.jpg"


def test_harmless_damage_costs_no_picture():
    data = encoded(photograph(60, 80), quality=90)
    whole = decode(data)
    for odd in (data + b"trailing", data[:-2] + bytes(40) + data[-2:], data.replace(b"JFIF\0\1", b"JFIF\0\7")):
        assert size_of(odd) == (60, 80)
        np.testing.assert_array_equal(decode(odd), whole)


def png(width: int, height: int, *, depth: int = 8, color: int = 2, rows: bytes = b"") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_bombs_are_refused_by_their_header():
    jpeg = bytearray(encoded(photograph(16, 16)))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65000, 65000)
    for data in (png(20000, 20000), bytes(jpeg), b"P6 30000 30000 255\n"):
        for read in (size_of, decode):
            start = time.perf_counter()
            with pytest.raises(Unreadable) as error:
                read(data, key="k")
            assert error.value.reason == "image too large" and error.value.key == "k"
            assert time.perf_counter() - start < 0.5


def test_a_jpeg_of_very_many_scans_is_refused_at_once(monkeypatch):
    data = encoded(photograph(64, 64), progressive=True)
    scans, last = data.count(b"\xff\xda"), data.rindex(b"\xff\xda")
    many = data[:last] + data[last:-2] * 1000 + data[-2:]
    start = time.perf_counter()
    with pytest.raises(Unreadable, match="more than 100 scans") as error:
        decode(many, key="k")
    assert error.value.reason == "corrupt image" and time.perf_counter() - start < 0.05
    monkeypatch.setattr(decoding, "MAX_SCANS", scans - 1)
    with pytest.raises(Unreadable, match=f"more than {scans - 1} scans"):
        decode(data)
    monkeypatch.setattr(decoding, "MAX_SCANS", scans)
    # Marks that are no scans: in a comment, and behind the end of the picture.
    comment = b"\xff\xfe\x04\x02" + b"\xff\xda" * 512
    for odd in (data[:2] + comment + data[2:], data + b"\xff\xda" * 1000):
        np.testing.assert_array_equal(decode(odd), decode(data))


def test_large_is_not_too_large(monkeypatch):
    assert size_of(png(13000, 13000)) == (13000, 13000)  # Pillow warns of it
    monkeypatch.setattr(decoding, "MAX_PIXELS", 3000)
    assert decode(encoded(photograph(50, 60))).shape == (50, 60, 3)
    for kind in ("JPEG", "PNG"):
        with pytest.raises(Unreadable, match="61 x 50"):
            size_of(encoded(photograph(50, 61), kind))


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for _ in range(random.integers(1, 4)):
        at = int(random.integers(len(damaged)))
        kind = random.integers(5)
        if kind == 0:
            damaged[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            damaged[at] = int(random.integers(256))
        elif kind == 2 and at > 1:
            del damaged[at:]
        elif kind == 3:
            damaged[at:at] = random.bytes(int(random.integers(1, 40)))
        else:
            del damaged[at : at + int(random.integers(1, 40))]
        if not damaged:
            break
    return bytes(damaged)


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000"])
def test_damaged_files_are_read_or_refused_in_silence(kind, capfd):
    picture = photograph(24, 20)
    exif = Image.Exif()
    exif[0x0112] = 5
    data = encoded(
        picture,
        "JPEG" if kind == "progressive" else kind,
        **({} if kind in ("GIF", "JPEG2000") else {"exif": exif}),
        **({"progressive": True} if kind == "progressive" else {}),
    )
    random = np.random.default_rng(len(kind))
    part = crop(2, 3, 14, 12, size=8, resample="fast")
    reasons, slowest = set(), 0.0
    for number in range(150 if kind in ("AVIF", "JPEG2000") else 700):
        damaged = mutated(data, random)
        start = time.perf_counter()
        try:
            size = size_of(damaged)
            got = decode(damaged)
            assert got.dtype == np.uint8 and got.shape == (*size, 3), number
            if size[0] >= 16 and size[1] >= 15:
                assert decode(damaged, part).shape == (8, 8, 3)
        except Unreadable as error:
            assert error.reason in REASONS
            reasons.add(error.reason)
        slowest = max(slowest, time.perf_counter() - start)
    assert {"truncated image", "corrupt image"} & reasons
    assert slowest < 5
    assert capfd.readouterr().err == ""


def test_importing_changes_nothing_and_nothing_is_printed():
    tiff = bytearray(encoded(photograph(8, 8), "TIFF"))
    at = tiff.index(struct.pack("<HHI", 277, 3, 1)) + 8  # samples per pixel
    tiff[at : at + 2] = b"\xff\x03"
    program = (
        "import cv2, logging, sys; logging.basicConfig(); before = cv2.getNumThreads()\n"
        "from mmjax.data import pictures\n"
        "from mmjax.data.sample import Crop, Unreadable\n"
        "assert cv2.getNumThreads() == before and 'jax' not in sys.modules\n"
        "try: pictures.decode(bytes.fromhex(sys.argv[1]))\n"
        "except Unreadable as error: print(error.reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tiff.hex()], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("corrupt image\n", "")


def test_random_bytes_behind_every_signature():
    random = np.random.default_rng(0)
    heads = [
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x40\0\0\0WEBPVP8 ",
        b"GIF89a",
        b"BM",
        b"II*\0",
        b"MM\0*",
        b"P6 ",
    ]
    for number in range(800):
        data = heads[number % len(heads)] + random.bytes(int(random.integers(0, 200)))
        with pytest.raises(Unreadable):
            decode(data)


def test_threads_keep_the_warning_filters_as_they_were():
    data = encoded(Image.fromarray(photograph(8, 8)).convert("P"), "PNG", transparency=bytes(range(9)))
    before = list(warnings.filters)
    failures = []

    def work():
        try:
            for _ in range(100):
                decode(data)
                assert size_of(png(13000, 13000)) == (13000, 13000)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert warnings.filters == before
