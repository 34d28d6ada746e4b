from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mmjax.core.config import ConfigError
from mmjax.data.transforms.randaugment import GEOMETRIC, OPERATIONS, PHOTOMETRIC, Transform, operation
from support.pictures import photograph
from support.samples import configured, sample

PICTURES = [photograph(40, 56), (photograph(40, 56, seed=1) // 3 + 60), np.full((40, 56, 3), 9, np.uint8)]


@pytest.mark.parametrize("magnitude", [0, 9, 30])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_levels_change_as_pillows(name, sign, magnitude):
    part = magnitude / 30
    factor = 1 + sign * 0.9 * part
    for x in PICTURES:
        image = Image.fromarray(x)
        expected = {
            "brightness": lambda i: ImageEnhance.Brightness(i).enhance(factor),
            "color": lambda i: ImageEnhance.Color(i).enhance(factor),
            "contrast": lambda i: ImageEnhance.Contrast(i).enhance(factor),
            "sharpness": lambda i: ImageEnhance.Sharpness(i).enhance(factor),
            "posterize": lambda i: ImageOps.posterize(i, 8 - round(magnitude / (30 / 4))),
            "solarize": lambda i: ImageOps.solarize(i, 255 - 255 * part),
            "autocontrast": ImageOps.autocontrast,
            "equalize": ImageOps.equalize,
        }[name](image)
        got = operation(name, magnitude, sign=sign, fill=0)(x)
        assert got.dtype == np.uint8 and got.shape == x.shape
        difference = np.abs(got.astype(int) - np.asarray(expected))
        most = {"color": 2, "sharpness": 2, "posterize": 0, "solarize": 0, "equalize": 0}.get(name, 1)
        assert difference.max() <= most, difference.max()


def place_after(name, *, sign, magnitude=30, size=(101, 121), at=(50, 60)):
    """Where a bright blob at (row, column) goes."""
    x = np.zeros((*size, 3), np.uint8)
    x[at[0] - 2 : at[0] + 3, at[1] - 2 : at[1] + 3] = 250
    got = operation(name, magnitude, sign=sign, fill=0)(x)[..., 0].astype(float)
    return np.array([np.arange(n) @ got.sum(axis=1 - axis) / got.sum() for axis, n in enumerate(size)])


def test_pixels_move_by_the_documented_amounts():
    for sign in (1, -1):
        np.testing.assert_allclose(place_after("translate_x", sign=sign), (50, 60 - sign * 121 * 150 / 331), atol=0.1)
        np.testing.assert_allclose(place_after("translate_y", sign=sign), (50 - sign * 101 * 150 / 331, 60), atol=0.1)
        np.testing.assert_allclose(place_after("shear_x", sign=sign), (50, 60), atol=0.1)
        np.testing.assert_allclose(place_after("shear_x", sign=sign, at=(80, 60)), (80, 60 - sign * 9), atol=0.1)
        np.testing.assert_allclose(place_after("shear_y", sign=sign, at=(50, 90)), (50 - sign * 9, 90), atol=0.1)
        row, column = place_after("rotate", sign=sign, at=(50, 90))
        np.testing.assert_allclose((column - 60, abs(row - 50)), (30 * np.cos(np.pi / 6), 15), atol=0.15)
    up, down = (place_after("rotate", sign=s, at=(50, 90))[0] for s in (1, -1))
    assert (up - 50) * (down - 50) < 0
    third = place_after("translate_x", sign=1, magnitude=10)
    np.testing.assert_allclose(third, (50, 60 - 121 * 150 / 331 / 3), atol=0.1)


def test_what_comes_in_from_outside_is_filled_and_magnitude_nothing_moves_nothing():
    x = PICTURES[0]
    for name in GEOMETRIC:
        np.testing.assert_array_equal(operation(name, 0, sign=1, fill=9)(x), x)
        moved = operation(name, 30, sign=1, fill=199)(np.zeros_like(x))
        assert set(np.unique(moved[[0, 0, -1, -1], [0, -1, 0, -1]])) & {199}


class Scripted:
    """Draws operations from a list, and always one sign."""

    def __init__(self, *names, sign=1):
        self.names = list(names)
        self.sign = sign

    def integers(self, high):
        return OPERATIONS.index(self.names.pop(0))

    def random(self):
        return 0.25 if self.sign > 0 else 0.75


def test_aligned_modalities_move_together_and_only_named_ones_change_levels():
    names = ("image", "depth")
    for name in OPERATIONS:
        given = sample(modalities=names)
        given.images["depth"] = given.images["image"]
        before = given.images["image"]
        out = Transform(num_ops=1, magnitude=20, data_modalities=names)(given, Scripted(name)).images
        if name in PHOTOMETRIC:
            assert out["depth"] is before
            assert not np.array_equal(out["image"], before)
        else:
            np.testing.assert_array_equal(out["depth"], out["image"])
            assert np.array_equal(out["image"], before) == (name == "identity")


def test_operations_follow_one_another():
    given = sample()
    x = given.images["image"]
    out = Transform(num_ops=2, magnitude=15)(given, Scripted("solarize", "rotate")).images["image"]
    step = operation("solarize", 15, sign=1, fill=0)(x)
    np.testing.assert_array_equal(out, operation("rotate", 15, sign=1, fill=0)(step))


@pytest.mark.parametrize("sign", [1, -1])
def test_signs_are_drawn(sign):
    given = sample()
    x = given.images["image"]
    out = Transform(num_ops=1, magnitude=15)(given, Scripted("brightness", sign=sign)).images["image"]
    assert (out.mean() > x.mean()) == (sign > 0)


def test_all_fourteen_are_drawn_alike():
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 14
    seen = np.zeros(14)

    class Counting(Scripted):
        def __init__(self, seed):
            self.generator = np.random.default_rng(seed)
            self.random = self.generator.random

        def integers(self, high):
            assert high == 14
            chosen = self.generator.integers(high)
            seen[chosen] += 1
            return chosen

    for seed in range(150):
        Transform(num_ops=4)(sample(size=(6, 6)), Counting(seed))
    assert seen.sum() == 600 and ((seen - 600 / 14) ** 2 / (600 / 14)).sum() < 40


@pytest.mark.parametrize("options", [{"num_ops": -1}, {"magnitude": 31}, {"fill": 300}, {"modalities": ("depth",)}])
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        configured(Transform, **options)
