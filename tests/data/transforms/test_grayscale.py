from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmjax.core.config import ConfigError
from mmjax.data.transforms.grayscale import Transform
from support.samples import configured, sample


def test_is_pillows_luma_in_three_channels():
    given = sample(modalities=("image", "depth"))
    before = dict(given.images)
    out = Transform(probability=1.0, data_modalities=("image", "depth"))(given, np.random.default_rng(0))
    luma = np.asarray(Image.fromarray(before["image"]).convert("L")).astype(int)
    assert out.images["image"].shape == before["image"].shape
    assert np.abs(out.images["image"] - luma[..., None]).max() <= 1
    assert (out.images["image"] == out.images["image"][..., :1]).all()
    assert out.images["depth"] is before["depth"]
    white = sample()
    white.images = {"image": np.full((2, 2, 3), 255, np.uint8)}
    assert (Transform(probability=1.0)(white, np.random.default_rng(0)).images["image"] == 255).all()


def test_probability():
    gray = 0
    for seed in range(500):
        x = Transform(probability=0.3)(sample(size=(4, 4)), np.random.default_rng(seed)).images["image"]
        gray += bool((x == x[..., :1]).all())
    assert abs(gray / 500 - 0.3) < 0.08


@pytest.mark.parametrize("options", [{"probability": -1.0}, {"modalities": ("thermal",)}])
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        configured(Transform, **options)
