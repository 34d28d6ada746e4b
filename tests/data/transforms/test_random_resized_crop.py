from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from mmjax.core.config import ConfigError
from mmjax.data.pictures import decode
from mmjax.data.transforms.random_resized_crop import Transform
from support.pictures import encoded, photograph
from support.samples import configured


def draws(transform, height, width, count=2000):
    return [transform(height, width, np.random.default_rng(seed)) for seed in range(count)]


@pytest.mark.parametrize(
    "scale, ratio", [((0.9, 1.0), (3 / 4, 4 / 3)), ((0.08, 1.0), (3 / 4, 4 / 3)), ((0.2, 0.3), (0.5, 0.6))]
)
def test_crops_lie_inside_and_have_the_area_and_shape_asked_for(scale, ratio):
    height, width = 307, 403
    for crop in draws(Transform(image_size=32, scale=scale, ratio=ratio), height, width):
        assert all(float(x).is_integer() for x in crop[:4])
        assert crop.top >= 0 and crop.top + crop.height <= height
        assert crop.left >= 0 and crop.left + crop.width <= width
        assert scale[0] - 0.01 <= crop.height * crop.width / (height * width) <= scale[1] + 0.01
        assert ratio[0] * 0.98 <= crop.width / crop.height <= ratio[1] * 1.02
        assert crop.size == crop.inner == (32, 32) and crop.offset == (0, 0)


def test_area_and_logarithm_of_the_shape_are_uniform_and_places_too():
    crops = draws(Transform(scale=(0.1, 0.4), ratio=(0.5, 2.0)), 1000, 1000, count=4000)
    area = np.array([c.height * c.width / 1e6 for c in crops])
    shape = np.array([math.log(c.width / c.height) / math.log(2) for c in crops])
    top = np.array([c.top / (1000 - c.height) for c in crops])
    left = np.array([c.left / (1000 - c.width) for c in crops])
    for values, low, high in ((area, 0.1, 0.4), (shape, -1, 1), (top, 0, 1), (left, 0, 1)):
        counts, _ = np.histogram(values, bins=10, range=(low, high + 1e-9))
        assert counts.sum() > 3980
        assert ((counts - 400) ** 2 / 400).sum() < 35  # chi square with 9 degrees of freedom: 1 in 10,000
    assert abs(np.corrcoef(area, shape)[0, 1]) < 0.06 and abs(np.corrcoef(top, left)[0, 1]) < 0.06


@pytest.mark.parametrize(
    "size, box",
    [
        ((100, 1000), (0, (1000 - 133) // 2, 100, 133)),
        ((1000, 100), ((1000 - 133) // 2, 0, 133, 100)),
        ((1, 50), (0, 24, 1, 1)),
        ((50, 1), (24, 0, 1, 1)),
    ],
)
def test_pictures_in_which_nothing_fits_give_their_centre(size, box):
    for crop in draws(Transform(scale=(1.0, 1.0)), *size, count=20):
        assert crop[:4] == box


def test_of_a_strange_picture_the_most_allowed_is_taken_and_small_ones_work():
    assert draws(Transform(scale=(1.0, 1.0), ratio=(1.9, 2.0)), 100, 100, count=3)[0][:4] == (
        (100 - 53) // 2,
        0,
        53,
        100,
    )
    for size in ((1, 1), (2, 1), (1, 3), (3, 3)):
        for crop in draws(Transform(scale=(0.08, 1.0)), *size, count=100):
            assert crop.height >= 1 and crop.width >= 1
            assert crop.top + crop.height <= size[0] and crop.left + crop.width <= size[1]


def test_equal_draws_give_equal_crops_and_others_others():
    transform = Transform(scale=(0.1, 0.5))
    assert draws(transform, 300, 400, 50) == draws(transform, 300, 400, 50)
    assert len({tuple(c) for c in draws(transform, 300, 400, 50)}) > 45


def test_the_view_is_the_part_of_the_picture():
    picture = photograph(120, 150)
    transform = Transform(image_size=48, scale=(0.3, 0.8), resample="bicubic")
    for crop in draws(transform, 120, 150, count=5):
        got = decode(encoded(picture, "PNG"), crop)
        top, left, height, width = (int(x) for x in crop[:4])
        alone = np.asarray(Image.fromarray(picture[top : top + height, left : left + width]).resize((48, 48), 3))
        inner = np.abs(got.astype(int) - alone)[4:-4, 4:-4]
        assert inner.max() <= 1  # at its border a view takes the pixels around into account


@pytest.mark.parametrize(
    "options",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.5)},
        {"scale": (0.5, 1.5)},
        {"ratio": (2.0, 1.0)},
        {"ratio": (0.0, 1.0)},
        {"resample": "area"},
    ],
)
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        configured(Transform, **options)
