from __future__ import annotations

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.transforms.flip import ACROSS, DOWN, Transform, swap_pairs
from support.samples import configured, sample

RANDOM = np.random.default_rng(0)


def test_all_modalities_are_mirrored_and_twice_is_once_not():
    for options, axes in (
        ({"horizontal": 1.0}, [1]),
        ({"horizontal": 0.0, "vertical": 1.0}, [0]),
        ({"horizontal": 1.0, "vertical": 1.0}, [0, 1]),
    ):
        given = sample(modalities=("image", "depth"), captions=("a cat left of the top shelf",))
        before, caption = dict(given.images), given.captions[0]
        out = Transform(**options)(given, RANDOM)
        for name, x in before.items():
            np.testing.assert_array_equal(out.images[name], np.flip(x, axes))
            assert out.images[name].flags.c_contiguous
        assert out.captions[0] != caption
        twice = Transform(**options)(out, RANDOM)
        assert twice.captions == [caption]
        np.testing.assert_array_equal(twice.images["depth"], before["depth"])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a dog left of a cat", "a dog right of a cat"),
        ("Left, RIGHT and the leftmost one.", "Right, LEFT and the rightmost one."),
        ("left-hand traffic, bright leftovers", "right-hand traffic, bright leftovers"),
        ("left right left", "right left right"),
        ("on top, above", "on top, above"),
        ("", ""),
    ],
)
def test_words_for_sides_are_exchanged_where_they_stand_alone(text, expected):
    assert swap_pairs(text, ACROSS) == expected
    assert swap_pairs(expected, ACROSS) == text


def test_words_for_heights_are_exchanged_for_the_vertical():
    text = "Top shelf above the lower left bottom drawer, below the topmost; stop, blower"
    other = "Bottom shelf below the upper left top drawer, above the bottommost; stop, blower"
    assert swap_pairs(text, DOWN) == other and swap_pairs(other, DOWN) == text


def test_hard_negatives_stay_false():
    negatives = [("replace_rel", "a cat left of a dog", "a cat right of a dog")]
    given = sample(captions=("a cat left of a dog",), negatives=negatives, label=4)
    out = Transform(horizontal=1.0)(given, RANDOM)
    assert out.captions == ["a cat right of a dog"]
    assert out.fields == {
        "negatives": [("replace_rel", "a cat right of a dog", "a cat left of a dog")],
        "label": 4,
    }
    assert negatives[0][1] == "a cat left of a dog"  # the source's own list is left alone


def test_words_may_be_left_alone():
    out = Transform(horizontal=1.0, swap_words=False)(
        sample(captions=("left",), negatives=[("k", "left", "right")]), RANDOM
    )
    assert out.captions == ["left"] and out.fields["negatives"] == [("k", "left", "right")]


def test_probabilities():
    counts = np.zeros(2)
    for seed in range(600):
        given = sample(size=(2, 2), captions=("left top",))
        out = Transform(horizontal=0.25, vertical=0.6)(given, np.random.default_rng(seed))
        counts += ["right" in out.captions[0], "bottom" in out.captions[0]]
    assert abs(counts[0] / 600 - 0.25) < 0.07 and abs(counts[1] / 600 - 0.6) < 0.08
    given = sample()
    before = given.images["image"]
    assert Transform(horizontal=0.0)(given, RANDOM).images["image"] is before


@pytest.mark.parametrize("options", [{"horizontal": 1.5}, {"vertical": -0.1}])
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}=.*between 0 and 1"):
        configured(Transform, **options)
