from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmjax.core.config import ConfigError
from mmjax.data.pictures import decode, size_of
from mmjax.data.transforms.resize_crop import Transform
from support.pictures import encoded, opened, photograph
from support.samples import configured

RANDOM = np.random.default_rng(0)
SIZES = [
    (97, 131),
    (131, 97),
    (64, 300),
    (301, 65),
    (33, 33),
    (64, 64),
    (20, 31),
    (65, 64),
    (70, 67),
    (149, 151),
    (7, 90),
    (180, 380),
    (171, 452),
    (50, 40),
]


def seen(data, **options):
    return decode(data, Transform(image_size=64, **options)(*size_of(data), RANDOM))


def files(size):
    picture = photograph(*size, seed=sum(size))
    yield encoded(picture, quality=92)
    yield encoded(picture, "PNG")


def reference(image, mode, fill=0):
    """What torchvision documents of Resize and CenterCrop, and open_clip of its resize modes, in Pillow."""
    width, height = image.size
    if mode == "squash":
        return image.resize((64, 64), Image.Resampling.BICUBIC)
    if mode == "longest":
        ratio = max(width, height) / 64
        small = image.resize((round(width / ratio), round(height / ratio)), Image.Resampling.BICUBIC)
        out = Image.new("RGB", (64, 64), (fill,) * 3)
        out.paste(small, ((64 - small.width) // 2, (64 - small.height) // 2))
        return out
    small = (64, int(64 * height / width)) if width <= height else (int(64 * width / height), 64)
    small = image.resize(small, Image.Resampling.BICUBIC)
    left, top = round((small.width - 64) / 2), round((small.height - 64) / 2)
    return small.crop((left, top, left + 64, top + 64))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode, fill", [("shortest", 0), ("squash", 0), ("longest", 0), ("longest", 127)])
def test_modes_are_torchvisions_and_open_clips(mode, fill, size):
    for data in files(size):
        got = seen(data, mode=mode, fill=fill)
        expected = np.asarray(reference(opened(data), mode, fill))
        np.testing.assert_array_equal(got, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_image_processors_of_transformers(size):
    from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

    raw = {"do_normalize": False, "do_rescale": False, "return_tensors": "np"}
    clip = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    siglip = SiglipImageProcessorPil(size={"height": 64, "width": 64})
    for data in files(size):
        for processor, options in ((clip, {"centering": "transformers"}), (siglip, {"mode": "squash"})):
            expected = processor(opened(data), **raw)["pixel_values"][0].transpose(1, 2, 0)
            np.testing.assert_array_equal(seen(data, **options), expected)


def test_the_two_centerings_differ_by_a_pixel_of_some_sizes():
    wide = [Transform(image_size=64, centering=c) for c in ("torchvision", "transformers")]
    places = {width: [round(t(64, width, RANDOM).left) for t in wide] for width in (64, 65, 66, 67, 68, 69, 71)}
    assert places == {64: [0, 0], 65: [0, 0], 66: [1, 1], 67: [2, 1], 68: [2, 2], 69: [2, 2], 71: [4, 3]}


@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "nearest", "fast"])
@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1), (2, 3), (40, 1300)])
def test_extreme_shapes_are_seen_too(size, resample):
    data = encoded(np.full((*size, 3), 77, np.uint8), "PNG")
    for mode in ("shortest", "squash", "longest"):
        got = seen(data, mode=mode, resample=resample)
        assert got.shape == (64, 64, 3) and (got[31, 31] == 77).all()


def test_boxes_are_placed_where_their_pixels_go():
    picture = np.zeros((100, 200, 3), np.uint8)
    picture[40:60, 90:130] = 255
    for mode in ("shortest", "squash", "longest"):
        view = Transform(image_size=50, mode=mode)(100, 200, RANDOM)
        bright = np.argwhere(decode(picture, view)[..., 0] > 127)
        (top, left), (bottom, right) = bright.min(axis=0), bright.max(axis=0) + 1
        np.testing.assert_allclose(view.place((90, 40, 130, 60)), (left, top, right, bottom), atol=0.51)


@pytest.mark.parametrize(
    "options, way_out",
    [
        ({"mode": "shorter"}, "'shortest'"),
        ({"resample": "cubic"}, "'bicubic'"),
        ({"centering": "torch"}, "'torchvision'"),
        ({"mode": "longest", "fill": 256}, "0 and 255"),
        ({"fill": 3}, "'longest'"),
    ],
)
def test_what_makes_no_sense_is_refused(options, way_out):
    with pytest.raises(ConfigError, match=way_out):
        configured(Transform, **options)
