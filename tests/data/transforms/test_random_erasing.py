from __future__ import annotations

import math

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.transforms.random_erasing import Transform
from support.samples import configured, sample


def erased(transform, seed, *, size=(60, 80), modalities=("image",)):
    """What came out, what went in, and the changed rectangle of the first modality."""
    given = sample(size=size, modalities=modalities)
    # No two draws or means give this level, so every erased pixel shows.
    given.images = {name: np.full((*size, 3), 7, np.uint8) for name in modalities}
    before = dict(given.images)
    out = transform(given, np.random.default_rng(seed)).images
    changed = np.argwhere((out[modalities[0]] != before[modalities[0]]).any(axis=2))
    if not len(changed):
        return out, before, None
    top, left = changed.min(axis=0)
    bottom, right = changed.max(axis=0) + 1
    assert len(changed) == (bottom - top) * (right - left)  # it is one rectangle, whole
    return out, before, (top, left, bottom, right)


def test_area_shape_and_place_follow_their_laws():
    transform = Transform(probability=1.0, scale=(0.05, 0.2), ratio=(0.5, 2.0), value=200)
    areas, shapes, corners = [], [], []
    for seed in range(800):
        out, _, box = erased(transform, seed)
        top, left, bottom, right = box
        areas.append((bottom - top) * (right - left) / 4800)
        shapes.append(math.log((bottom - top) / (right - left)))
        corners.append((top / max(60 - (bottom - top), 1), left / max(80 - (right - left), 1)))
        assert (out["image"][top:bottom, left:right] == 200).all()
    assert 0.045 < min(areas) < 0.07 and 0.18 < max(areas) < 0.21 and abs(np.mean(areas) - 0.125) < 0.006
    assert abs(np.mean(shapes)) < 0.06 and 0.6 < max(shapes) < 0.8 and -0.8 < min(shapes) < -0.6
    assert np.abs(np.mean(corners, axis=0) - 0.5).max() < 0.05 and np.max(corners) == 1 and np.min(corners) == 0


def test_modalities_lose_the_same_rectangle_and_others_none():
    names = ("image", "depth", "thermal")
    transform = Transform(probability=1.0, value=0, modalities=("image", "thermal"), data_modalities=names)
    out, before, _ = erased(transform, 1, modalities=names)
    np.testing.assert_array_equal(out["image"], out["thermal"])
    assert out["depth"] is before["depth"]
    assert (before["image"] == 7).all()


def test_values():
    given = sample(size=(60, 80))
    before = given.images["image"]
    out = Transform(probability=1.0, value="mean")(given, np.random.default_rng(0)).images["image"]
    hole = out[(out != before).any(axis=2)]
    np.testing.assert_array_equal(np.unique(hole, axis=0)[0], np.round(before.mean(axis=(0, 1))))
    noise, _, box = erased(Transform(probability=1.0, scale=(0.3, 0.33), ratio=(1.0, 1.0)), 3, size=(100, 100))
    top, left, bottom, right = box
    hole = noise["image"][top:bottom, left:right]
    assert abs(hole.mean() - 127.5) < 3 and abs(hole.std() - 73.9) < 3 and len(np.unique(hole)) == 256
    assert abs(np.corrcoef(hole[..., 0].ravel(), hole[..., 1].ravel())[0, 1]) < 0.1


def test_probability_and_pictures_in_which_nothing_fits():
    count = sum(erased(Transform(probability=0.3, value=0), seed)[2] is not None for seed in range(400))
    assert abs(count / 400 - 0.3) < 0.08
    never = Transform(probability=1.0, scale=(0.9, 1.0), ratio=(3.0, 3.0), value=0)
    assert all(erased(never, seed, size=(50, 50))[2] is None for seed in range(20))
    for seed in range(50):
        erased(Transform(probability=1.0, value=0), seed, size=(1, 2))


@pytest.mark.parametrize(
    "options",
    [
        {"probability": 1.1},
        {"scale": (0.5, 0.2)},
        {"scale": (0.0, 0.2)},
        {"ratio": (3.0, 0.3)},
        {"value": "noise"},
        {"value": 256},
        {"value": True},
        {"modalities": ("depth",)},
    ],
)
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        configured(Transform, **options)
