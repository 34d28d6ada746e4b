from __future__ import annotations

import math

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.transforms.rotate import Transform
from support.samples import configured, sample


def turned(transform, x, seed=0, names=("image",)):
    given = sample(size=x.shape[:2], modalities=names)
    given.images = dict.fromkeys(names, x)
    return transform(given, np.random.default_rng(seed)).images


def test_a_point_moves_along_a_circle_and_angles_are_uniform():
    x = np.zeros((81, 81, 3), np.uint8)
    x[39:42, 69:72] = 255  # 30 right of the center
    angles = []
    for seed in range(300):
        got = turned(Transform(probability=1.0, degrees=20), x, seed)["image"][..., 0].astype(float)
        v, u = (np.sum(axis * got) / got.sum() - 40 for axis in np.mgrid[:81, :81])
        assert abs(math.hypot(u, v) - 30) < 0.1
        angles.append(math.degrees(math.atan2(v, u)))
    assert -20.5 < min(angles) < -18 and 18 < max(angles) < 20.5 and abs(np.mean(angles)) < 2
    assert abs(np.std(angles) - 20 / math.sqrt(3)) < 1


def test_what_comes_from_outside_is_the_edge_or_a_gray_level_and_modalities_agree():
    x = np.full((20, 30, 3), 200, np.uint8)
    by_edge, by_level = (turned(Transform(probability=1.0, fill=fill), x)["image"] for fill in ("edge", 9))
    np.testing.assert_array_equal(by_edge, x)
    assert by_level.min() == 9 and by_level.max() == 200 and (by_level[8:12, 12:18] == 200).all()
    both = turned(Transform(probability=1.0, fill=9), x, names=("image", "depth"))
    np.testing.assert_array_equal(both["image"], both["depth"])
    assert (x == 200).all()


def test_probability_and_errors():
    x = np.arange(1200, dtype=np.uint8).reshape(20, 20, 3)
    changed = sum(not np.array_equal(turned(Transform(probability=0.3), x, s)["image"], x) for s in range(300))
    assert 60 < changed < 120
    assert turned(Transform(probability=0.0), x)["image"] is x
    with pytest.raises(ConfigError, match=r"degrees=200\.0: must be between 0 and 180"):
        configured(Transform, degrees=200.0)
    with pytest.raises(ConfigError, match=r"fill='mirror'"):
        configured(Transform, fill="mirror")
