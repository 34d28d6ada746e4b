from __future__ import annotations

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mmjax.core.config import ConfigError
from mmjax.data.pictures import pixels
from mmjax.data.transforms.color_jitter import Transform
from support.pictures import photograph
from support.samples import configured, sample

NOTHING = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.6])
@pytest.mark.parametrize(
    "name, pillow", [("brightness", "Brightness"), ("contrast", "Contrast"), ("saturation", "Color")]
)
def test_changes_are_pillows_but_rounded(name, pillow, factor):
    x = photograph(40, 50)
    got = getattr(pixels, name)(x, factor)
    expected = np.asarray(getattr(ImageEnhance, pillow)(Image.fromarray(x)).enhance(factor))
    assert got.dtype == np.uint8 and np.abs(got.astype(int) - expected).max() <= (2 if name == "saturation" else 1)
    if factor == 1.0:
        np.testing.assert_array_equal(got, x)


def test_levels_are_rounded_to_the_nearest():
    x = np.full((2, 2, 3), 101, np.uint8)
    assert pixels.brightness(x, 0.5).max() == 51 and pixels.brightness(x, 0.504).max() == 51
    assert pixels.brightness(x, 3.0).min() == 255
    y = np.full((2, 2, 3), (10, 20, 30), np.uint8)
    luma = 0.299 * 10 + 0.587 * 20 + 0.114 * 30
    np.testing.assert_array_equal(pixels.saturation(y, 0.5)[0, 0], np.round(0.5 * y[0, 0] + 0.5 * luma))


def test_hue_turns_the_wheel():
    x = photograph(30, 30)
    np.testing.assert_array_equal(pixels.hue(x, 0.25), pixels.hue(x, -0.75))
    for color, turns, expected in (
        ((255, 0, 0), 1 / 3, (0, 255, 0)),
        ((255, 0, 0), -1 / 3, (0, 0, 255)),
        ((0, 255, 0), 0.5, (255, 0, 255)),
        ((90, 90, 90), 0.3, (90, 90, 90)),
    ):
        got = pixels.hue(np.full((2, 2, 3), color, np.uint8), turns)
        assert np.abs(got.astype(int) - expected).max() <= 6
    for pixel, turned in zip(x[::7, ::7].reshape(-1, 3), pixels.hue(x, 0.1)[::7, ::7].reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
        expected = np.array(colorsys.hsv_to_rgb((h + 0.1) % 1, s, v)) * 255
        assert np.abs(turned - expected).max() <= 8


def test_nothing_to_change_changes_nothing():
    given = sample()
    before = given.images["image"]
    np.testing.assert_array_equal(Transform(**NOTHING)(given, np.random.default_rng(0)).images["image"], before)
    out = Transform(probability=0.0)(sample(), np.random.default_rng(0))
    np.testing.assert_array_equal(out.images["image"], before)


def test_strengths_are_ranges_of_factors():
    x = np.full((4, 4, 3), 100, np.uint8)
    for name, low, high in (("brightness", 0.7, 1.3), ("brightness", 0.0, 2.5)):
        transform = Transform(**(NOTHING | {name: high - 1}))
        seen = []
        for seed in range(300):
            given = sample()
            given.images = {"image": x}
            seen.append(transform(given, np.random.default_rng(seed)).images["image"][0, 0, 0] / 100)
        assert low - 0.01 <= min(seen) < low + 0.06 and high - 0.1 < max(seen) <= high + 0.01
        assert abs(np.mean(seen) - (low + high) / 2) < 0.1


def test_the_order_is_drawn():
    x = photograph(8, 8)
    seen = set()
    for seed in range(30):
        given = sample()
        given.images = {"image": x}

        class Fixed:
            """Draws fixed strengths, and orders from a generator."""

            random = staticmethod(lambda: 0.0)
            uniform = staticmethod(lambda low, high: high)
            permutation = staticmethod(np.random.default_rng(seed).permutation)

        seen.add(Transform(hue=0.3)(given, Fixed()).images["image"].tobytes())
    assert len(seen) > 4


def test_modalities_named_change_alike_and_others_stay():
    given = sample(modalities=("image", "depth", "thermal"))
    given.images["thermal"] = given.images["image"]
    depth = given.images["depth"]
    transform = Transform(modalities=("image", "thermal"), data_modalities=("image", "depth", "thermal"))
    out = transform(given, np.random.default_rng(1))
    np.testing.assert_array_equal(out.images["image"], out.images["thermal"])
    assert out.images["depth"] is depth
    assert not np.array_equal(out.images["image"], sample().images["image"])


@pytest.mark.parametrize(
    "options",
    [
        {"brightness": -0.1},
        {"contrast": float("inf")},
        {"hue": 0.6},
        {"hue": float("nan")},
        {"probability": 2.0},
        {"modalities": ("depth",)},
        {"modalities": ()},
        {"modalities": ("image", "image")},
    ],
)
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        configured(Transform, **options)
