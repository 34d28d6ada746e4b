from __future__ import annotations

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.transforms.style_statistics import Transform, mix_statistics
from support.samples import configured, rows


def generator(number):
    return np.random.default_rng((7, number))


def reference(x, other, share):
    """The equation of the module, in float64."""
    x, other = x.astype(float), other.astype(float)
    mean, deviation = x.mean(axis=(0, 1)), x.std(axis=(0, 1))
    its_mean, its_deviation = other.mean(axis=(0, 1)), other.std(axis=(0, 1))
    normal = (x - mean) / np.where(deviation > 0, deviation, 1)
    out = (share * deviation + (1 - share) * its_deviation) * normal + share * mean + (1 - share) * its_mean
    return np.clip(np.floor(out + 0.5), 0, 255)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9, 1.0])
def test_statistics_are_mixed_by_the_equation(share):
    given = rows(6)
    images = given.images["image"]
    for i in range(5):
        got = mix_statistics(images[i], images[i + 1], share)
        assert got.dtype == np.uint8
        difference = np.abs(got - reference(images[i], images[i + 1], share))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01  # a tie may be rounded either way
        if share == 1.0:
            np.testing.assert_array_equal(got, images[i])
    wide = np.stack([images[0], images[0] // 4 + 100])
    np.testing.assert_allclose(
        mix_statistics(wide[0], wide[1], 0.0).mean(axis=(0, 1)), wide[1].mean(axis=(0, 1)), atol=0.5
    )


def test_a_picture_of_one_color_takes_up_the_tint():
    gray = np.full((4, 4, 3), 90, np.uint8)
    other = rows(2).images["image"][0]
    expected = np.round(other.mean(axis=(0, 1)))
    assert np.abs(mix_statistics(gray, other, 0.0) - expected).max() <= 1
    assert np.abs(mix_statistics(other, gray, 0.0).astype(int) - 90).max() <= 1


def test_partners_are_the_same_member_of_the_next_group():
    transform = Transform()
    assert transform.partners(batch_size=6, group=1, host_rows=range(6)) == {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 0}
    assert transform.partners(batch_size=6, group=2, host_rows=range(2, 6)) == {2: 4, 3: 5, 4: 0, 5: 1}
    assert transform.partners(batch_size=2, group=2, host_rows=range(2)) == {}
    whole = transform.partners(batch_size=8, group=2, host_rows=range(8))
    halves = [transform.partners(batch_size=8, group=2, host_rows=s) for s in (range(4), range(4, 8))]
    assert halves[0] | halves[1] == whole


def test_rows_take_up_unmodified_partners_and_nothing_else_changes():
    partner = [1, 2, 3, 0, -1, -1]
    given = rows(6, partner=partner, modalities=("image", "depth"))
    out = Transform(probability=1.0, alpha=0.7, data_modalities=("image", "depth"))(given, generator)
    for i, j in enumerate(partner):
        x = given.images["image"]
        if j < 0:
            np.testing.assert_array_equal(out.images["image"][i], x[i])
            continue
        draw = generator(i)
        draw.random()
        share = draw.beta(0.7, 0.7)
        assert np.abs(out.images["image"][i] - reference(x[i], x[j], share)).max() <= 1
    assert out.images["depth"] is given.images["depth"]
    for name in ("image_ids", "image_weight", "tokens", "text_ids", "text_weight", "numbers"):
        assert getattr(out, name) is getattr(given, name)


def test_modalities_share_the_draw():
    given = rows(3, partner=[1, 2, 0], modalities=("image", "depth"))
    both = Transform(probability=1.0, modalities=("image", "depth"), data_modalities=("image", "depth"))(
        given, generator
    )
    for name in ("image", "depth"):
        draw = generator(0)
        draw.random()
        expected = reference(given.images[name][0], given.images[name][1], draw.beta(0.1, 0.1))
        assert np.abs(both.images[name][0] - expected).max() <= 1


def test_probability():
    given = rows(400, partner=np.roll(np.arange(400), -1), size=(3, 3))
    out = Transform(probability=0.4, alpha=5.0)(given, generator)
    changed = (out.images["image"] != given.images["image"]).any(axis=(1, 2, 3)).mean()
    assert abs(changed - 0.4) < 0.08
    np.testing.assert_array_equal(Transform(probability=0.0)(given, generator).images["image"], given.images["image"])


@pytest.mark.parametrize(
    "options", [{"alpha": 0.0}, {"alpha": float("inf")}, {"probability": 3.0}, {"modalities": ("x",)}]
)
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        configured(Transform, **options)
