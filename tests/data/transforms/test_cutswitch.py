import copy
import pickle

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.sample import Sample
from mmjax.data.sources.scenes import Source
from mmjax.data.transforms import cutswitch, cutswitch_views
from mmjax.data.transforms.cutswitch import Transform
from support.samples import configured

NAMES = ("image", "depth", "thermal", "normals")


def sample(count=3, *, shape=(32, 24, 3), seed=0, images=None):
    g = np.random.default_rng(seed)
    made = {name: g.integers(0, 256, shape, dtype=np.uint8) for name in NAMES[:count]} if images is None else images
    for x in made.values():
        x.flags.writeable = False
    return Sample(id=7, key="seven", captions=["a cat, left of a dog"], images=made)


def stacked(s):
    return np.stack([s.images[name] for name in NAMES if name in s.images])


def changed(a, b):
    """bool[H, W]: the least box that holds all pixels that differ in any modality."""
    mask = (stacked(a) != stacked(b)).any((0, 3))
    box = np.zeros_like(mask)
    if mask.any():
        y, x = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        box[y[0] : y[-1] + 1, x[0] : x[-1] + 1] = True
    return box


@pytest.mark.parametrize("count", [2, 3, 4])
def test_blocks_move_between_modalities_and_nothing_else_happens(count):
    transform = Transform(data_modalities=NAMES[:count], probability=1.0)
    s = sample(count)
    before = copy.deepcopy(s)
    permutations = set()
    for seed in range(200):
        out = transform(s, np.random.default_rng(seed))
        assert out.captions == before.captions and out.id == 7 and out.key == "seven"
        x, y = stacked(s), stacked(out)
        np.testing.assert_array_equal(np.sort(x, axis=0), np.sort(y, axis=0))
        box = changed(s, out)
        np.testing.assert_array_equal(x[:, ~box], y[:, ~box])
        if not box.any():
            continue
        source = [[k for k in range(count) if (y[m][box] == x[k][box]).all()] for m in range(count)]
        assert all(len(found) == 1 for found in source)
        source = [found[0] for found in source]
        assert sorted(source) == list(range(count)) and all(k != m for m, k in enumerate(source))
        permutations.add(tuple(source))
        # With the inverse permutation the block goes back.
        back = y.copy()
        for m, k in enumerate(source):
            back[k][box] = y[m][box]
        np.testing.assert_array_equal(back, x)
    assert len(permutations) == {2: 1, 3: 2, 4: 9}[count]
    np.testing.assert_array_equal(stacked(s), stacked(before))


def test_constant_modalities_take_each_others_value_in_one_box():
    s = sample(images={name: np.full((40, 40, 3), 10 * k, np.uint8) for k, name in enumerate(NAMES[:3])})
    for seed in range(50):
        out = stacked(Transform(data_modalities=NAMES[:3], probability=1.0)(s, np.random.default_rng(seed)))
        masks = [out[k, ..., 0] != 10 * k for k in range(3)]
        for mask, picture in zip(masks, out, strict=True):
            np.testing.assert_array_equal(mask, masks[0])
            assert len(np.unique(picture[mask])) <= 1


def test_the_probability_is_that_of_a_change_and_none_changes_nothing():
    s = sample(2)
    assert Transform(data_modalities=NAMES[:2], probability=0.0)(s, np.random.default_rng(0)) is s
    transform = Transform(data_modalities=NAMES[:2])
    assert abs(np.mean([transform(s, np.random.default_rng(k)) is not s for k in range(1000)]) - 0.5) < 0.05


def test_scenes_have_what_it_needs():
    item = Source("train", size=8, modalities=("image", "depth", "thermal"))[3]
    s = Sample(id=3, key="3", captions=item["captions"], images={m: item[m] for m in ("image", "depth", "thermal")})
    transform = pickle.loads(pickle.dumps(Transform(data_modalities=("image", "depth", "thermal"), probability=1.0)))
    one, two = (stacked(transform(s, np.random.default_rng(5))) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert (one != stacked(s)).any()


def test_what_cannot_be_exchanged_is_refused():
    with pytest.raises(
        ConfigError, match=r"^data.modalities=\('image',\): cutswitch needs two or more, .*cutswitch_views"
    ):
        Transform(data_modalities=("image",))
    images = {"image": np.zeros((8, 8, 3), np.uint8), "depth": np.zeros((8, 9, 3), np.uint8)}
    with pytest.raises(ConfigError, match=r"image \[8, 8, 3\], depth \[8, 9, 3\]"):
        Transform(data_modalities=("image", "depth"), probability=1.0)(sample(images=images), np.random.default_rng(0))
    for option in ({"probability": 1.1}, {"probability": -0.1}, {"alpha": 0.0}):
        name, value = next(iter(option.items()))
        with pytest.raises(ConfigError, match=f"{name}={value}"):
            configured(Transform, data_modalities=("image", "depth"), **option)
        with pytest.raises(ConfigError, match=f"{name}={value}"):
            configured(cutswitch_views.Transform, **option)


def reference_light(picture, light):
    weights = np.array([0.299, 0.587, 0.114])
    x = picture.astype(np.float64)
    mean = (x @ weights).mean()
    y = light.brightness * (light.contrast * (x - mean) + mean)
    gray = (y @ weights)[..., None]
    return np.clip(gray + light.saturation * (y - gray), 0, 255)


class TestViews:
    def test_a_light_is_the_formula(self):
        g = np.random.default_rng(0)
        picture = g.integers(0, 256, (40, 30, 3), dtype=np.uint8)
        for _ in range(20):
            light = cutswitch_views.Light(*g.uniform(0.3, 1.7, 3).tolist())
            expected = reference_light(picture, light)
            assert abs(cutswitch_views.relight(picture, light) - expected).max() <= 0.5 + 1e-3
            part = (slice(3, 20), slice(5, 9))
            assert abs(cutswitch_views.relight(picture, light, part) - expected[part]).max() <= 0.5 + 1e-3
        np.testing.assert_array_equal(cutswitch_views.relight(picture, cutswitch_views.Light(1, 1, 1)), picture)

    def test_all_but_a_box_is_one_view_and_the_box_another_of_the_same_place(self):
        pixels = np.full((48, 48, 3), 100, np.uint8)
        pixels[24:] = (120, 100, 60)
        s = sample(images={"image": pixels})
        boxes = 0
        for seed in range(200):
            out = cutswitch_views.Transform(probability=1.0)(s, np.random.default_rng(seed)).images["image"]
            plain = cutswitch_views.Transform(probability=0.0)(s, np.random.default_rng(seed)).images["image"]
            differs = (out != plain).any(-1)
            assert out.dtype == np.uint8 and out.shape == pixels.shape
            for half in (slice(0, 24), slice(24, 48)):  # one color in, at most one for each of the two views out
                assert len(np.unique(plain[half].reshape(-1, 3), axis=0)) == 1
                assert len(np.unique(out[half][differs[half]].reshape(-1, 3), axis=0)) <= 1
            if differs.any():
                y, x = (np.flatnonzero(differs.any(axis)) for axis in (1, 0))
                assert differs[y[0] : y[-1] + 1, x[0] : x[-1] + 1].all()
                boxes += 1
        assert boxes > 150
        assert s.captions == ["a cat, left of a dog"] and (s.images["image"] == pixels).all()

    def test_modalities_share_the_box(self):
        images = {name: np.full((32, 32, 3), value, np.uint8) for name, value in (("image", 90), ("depth", 140))}
        out = cutswitch_views.Transform(probability=1.0, saturation=0.0)(
            sample(images=images), np.random.default_rng(1)
        )
        masks = [x[..., 0] != x[0, 0, 0] for x in out.images.values()]
        assert masks[0].any() and not masks[0].all()
        np.testing.assert_array_equal(*masks)

    def test_two_views_that_cannot_differ_are_refused(self):
        with pytest.raises(ConfigError, match="both views are the same"):
            cutswitch_views.Transform(brightness=0.0, contrast=0.0, saturation=0.0)
        with pytest.raises(ConfigError, match=r"contrast=1\.5"):
            configured(cutswitch_views.Transform, contrast=1.5)

    def test_only_the_mode_with_modalities_needs_them(self):
        assert "data_modalities" not in cutswitch_views.Transform.__init__.__annotations__
        assert "data_modalities" in cutswitch.Transform.__init__.__annotations__
