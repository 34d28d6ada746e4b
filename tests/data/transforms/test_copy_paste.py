from __future__ import annotations

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.transforms.copy_paste import Transform
from support.samples import configured, sample

X = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def pasted(transform, seed, x=X, names=("image",)):
    given = sample(size=x.shape[:2], modalities=names)
    given.images = dict.fromkeys(names, x)
    return transform(given, np.random.default_rng(seed)).images


def test_a_rectangle_of_the_picture_is_in_another_place_and_all_else_as_it_was():
    before, areas, corners = X.copy(), [], []
    for seed in range(200):
        got = pasted(Transform(probability=1.0, scale=(0.04, 0.16)), seed)["image"]
        changed = np.argwhere((got != X).any(axis=2))
        if not len(changed):  # onto itself
            continue
        (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0) + 1
        patch = got[top:bottom, left:right]
        h, w, _ = patch.shape
        windows = np.lib.stride_tricks.sliding_window_view(X, patch.shape)[:, :, 0]
        assert (windows == patch).all(axis=(2, 3, 4)).any()
        areas.append(h * w / 2400)
        corners.append((top / (40 - h), left / (60 - w)))
    assert 0.03 < min(areas) < 0.06 and 0.14 < max(areas) < 0.18
    assert np.abs(np.mean(corners, axis=0) - 0.5).max() < 0.08
    np.testing.assert_array_equal(X, before)


def test_modalities_agree_and_tiny_pictures_work():
    both = pasted(Transform(probability=1.0), 3, names=("image", "depth"))
    np.testing.assert_array_equal(both["image"], both["depth"])
    assert pasted(Transform(probability=1.0, scale=(1.0, 1.0)), 0)["image"].tolist() == X.tolist()
    assert pasted(Transform(probability=1.0), 0, x=X[:1, :1])["image"].tolist() == X[:1, :1].tolist()


def test_probability_and_errors():
    changed = sum(not np.array_equal(pasted(Transform(probability=0.3), s)["image"], X) for s in range(300))
    assert 60 < changed < 120
    with pytest.raises(ConfigError, match=r"scale=\(0\.5, 0\.1\): the smaller number must come first"):
        configured(Transform, scale=(0.5, 0.1))
