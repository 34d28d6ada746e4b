"""Which patches stay: how many, whose positions they keep, and that none is preferred."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.augment.common.sequence_dropout import keep_patches
from mmjax.augment.patch_dropout import Augmentation
from mmjax.core.config import ConfigError
from support import features


def marked(rows, patches, num_prefix_tokens=1):
    """Tokens that say where they stood: [rows, num_prefix_tokens + patches, 2], class token first."""
    place = np.arange(-num_prefix_tokens, patches, dtype=np.float32)
    return jnp.asarray(np.stack(np.broadcast_arrays(place[None, :], np.arange(rows)[:, None]), axis=-1), jnp.float32)


def kept(kind, drop_rate, *, rows=6, patches=16, seed=0):
    module = Augmentation(drop_rate=drop_rate, kind=kind)
    chosen = module.choose_patches(jax.random.key(seed), rows=rows, patches=patches, drop_rate=drop_rate)
    tokens = np.asarray(keep_patches(marked(rows, patches), chosen, num_prefix_tokens=1))
    np.testing.assert_array_equal(tokens[..., 1], np.broadcast_to(np.arange(rows)[:, None], tokens.shape[:2]))
    np.testing.assert_array_equal(tokens[:, 0, 0], -1)  # the class token
    return tokens[:, 1:, 0].astype(int)


@pytest.mark.parametrize("n, drop_rate", [(9, 0.5), (9, 0.75), (9, 0.99), (9, 0.01), (7, 0.3), (16, 0.5), (1, 0.9)])
def test_flip_keeps_its_number_of_different_patches(n, drop_rate):
    places = kept("random", drop_rate, patches=n)
    assert places.shape == (6, max(1, int(n * (1 - drop_rate))))
    assert all(len(set(row)) == len(row) for row in places.tolist())


def test_every_patch_is_kept_as_often_as_any_other_and_rows_draw_their_own():
    rows = 3000
    for kind, drop_rate, n in (("random", 0.5, 9), ("grid", 0.75, 16)):
        places = kept(kind, drop_rate, rows=rows, patches=n)
        chance = places.shape[1] / n
        found = np.bincount(places.ravel(), minlength=n) / rows
        assert np.abs(found - chance).max() < 4.5 * (chance * (1 - chance) / rows) ** 0.5
        assert len({frozenset(row) for row in places.tolist()}) > 50


def test_a_grid_keeps_one_of_each_window_and_a_block_keeps_adjacent_ones():
    for row in kept("grid", 0.75, rows=50):
        assert sorted((p // 4 // 2, p % 4 // 2) for p in row) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    corners = set()
    for row in kept("block", 0.5, rows=200):
        assert len(row) == 4  # ⌊4 √½⌋ = 2 a side
        corner = min(row)
        corners.add(corner)
        assert sorted(row) == [corner, corner + 1, corner + 4, corner + 5]
    assert corners == {0, 1, 2, 4, 5, 6, 8, 9, 10}


def test_the_key_alone_decides_and_a_rate_of_zero_drops_nothing():
    np.testing.assert_array_equal(kept("random", 0.5, seed=1), kept("random", 0.5, seed=1))
    assert not np.array_equal(kept("random", 0.5, seed=1), kept("random", 0.5, seed=2))
    tokens = marked(2, 9)
    none = Augmentation().choose_patches(jax.random.key(0), rows=2, patches=9, drop_rate=0.0)
    assert keep_patches(tokens, none, num_prefix_tokens=1) is tokens


def test_levels_round_a_rate_that_changes_and_leave_a_constant_one_alone():
    assert Augmentation(drop_rate=0.3).drop_rates == (0.3,)
    from mmjax.augment.common.schedules import Schedule

    falling = Augmentation(drop_rate=Schedule(value=0.8, shape="linear", over=100), levels=4)
    assert falling.drop_rates == pytest.approx((0.0, 0.2, 0.4, 0.6, 0.8))
    level = jax.jit(falling.level)
    got = [falling.drop_rates[int(level(jnp.int32(step)))] for step in (0, 20, 50, 95, 500)]
    assert got == pytest.approx([0.8, 0.6, 0.4, 0.0, 0.0])
    tuned = Augmentation(drop_rate=Schedule(value=0.5, stop=10), levels=1)
    assert [int(jax.jit(tuned.level)(jnp.int32(step))) for step in (0, 9, 10)] == [1, 1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_rate": 1.0}, r"augment\.patch_dropout\.drop_rate=1\.0: must be between 0 and 0\.99"),
        ({"levels": 0}, r"augment\.patch_dropout\.levels=0: must be at least 1"),
        ({"kind": "grid"}, r"augment\.patch_dropout\.drop_rate=0\.25: kind='grid' keeps one patch of four"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        features.made("patch_dropout", **options)


@pytest.mark.parametrize(("kind", "patches"), [("grid", 9), ("grid", 12), ("block", 12)])
def test_patches_that_are_no_square_have_no_windows(kind, patches):
    with pytest.raises(ConfigError, match=f"kind='{kind}': {patches} patches are no square grid"):
        kept(kind, 0.75, patches=patches)
