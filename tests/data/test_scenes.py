"""The source: splits, nesting, pairs, noise knobs, determinism, errors."""

import colorsys
import dataclasses
import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from mmjax.core.config import ConfigError, build
from mmjax.data.scenes import language, shifts
from mmjax.data.scenes import world as worlds
from mmjax.data.scenes.graph import claims
from mmjax.data.scenes.questions import ANSWERS, KINDS
from mmjax.data.scenes.render import render
from mmjax.data.scenes.world import WORLDS
from mmjax.data.sources.scenes import SPLITS, Source
from mmjax.generate.scene_oracles.writer import PARAPHRASES
from support.scene_semantics import Silence

SMALL = {"image_size": 8}


def graph(scene):
    """A scene as text; lengths rounded, as the last bits of sine and square root differ between machines."""
    things = [tuple(round(v, 3) for v in dataclasses.astuple(t)) for t in scene.things]
    return repr((things, scene.relation, scene.light, [round(v, 3) for v in scene.tint]))


def graphs(source, count):
    return [graph(source.scene(i)) for i in range(count)]


def combinations(scene):
    return [(t.color, t.shape) for t in scene.things]


GOLDEN = {
    "easy": "14e9bf38c3dc6ddc38a65305c84edaab225ba3725f00f65dff0dbf19cce26167",
    "standard": "1967697387922580d4ec2238b558e165fdfba419469380c4bb6405ab04265049",
    "full": "4ecceebeaf0151df4b8d786bab682b228b6967b238fe5625bbc5c71ca0cd11c5",
}


@pytest.mark.parametrize("world", WORLDS)
def test_scene_graphs_and_captions_never_change(world):
    digest = hashlib.sha256()
    for split in SPLITS:
        source = Source(split, world=world, **SMALL)
        for i in range(64):
            digest.update(graph(source.scene(i)).encode())
            item = source[i]
            # The digests are older than the American names of the kinds.
            digest.update(repr((item["captions"], item.get("negatives"))).replace("_color", "_colour").encode())
    for i in range(64):
        digest.update(graph(Source("train", world=world, twins=True).scene(i)).encode())
    assert digest.hexdigest() == GOLDEN[world]


def test_pixel_statistics_never_change():
    source = Source("train", modalities=("image", "depth", "thermal"))
    items = [source[i] for i in range(64)]
    found = {m: (np.mean([i[m] for i in items]), np.std([i[m] for i in items])) for m in source.modalities}
    expected = {"image": (133.43, 85.19), "depth": (33.01, 49.81), "thermal": (72.52, 30.37)}
    for modality, (mean, std) in expected.items():
        np.testing.assert_allclose(found[modality], (mean, std), atol=0.01)


@pytest.mark.parametrize("twins", [False, True])
def test_a_smaller_set_is_a_prefix_of_a_larger(twins):
    options = {"twins": twins, "caption_noise": 0.3, "terse": 0.3, **SMALL}
    small, large = Source("train", size=100, **options), Source("train", size=32768, **options)
    for i in range(100):
        a, b = small[i], large[i]
        assert a["id"] == b["id"] == i and a["captions"] == b["captions"]
        np.testing.assert_array_equal(a["image"], b["image"])
    assert len(large) == 32768 and large[32767]["id"] == 32767
    with pytest.raises(IndexError, match="100 examples"):
        small[100]


def test_splits_and_seeds_are_disjoint_streams():
    sources = [Source(s, seed=seed, **SMALL) for s in SPLITS for seed in (0, 1)]
    everything = [g for s in sources for g in graphs(s, 300 if len(s) >= 300 else len(s))]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("split", SPLITS)
def test_items_do_not_depend_on_order_cache_or_pickling(split):
    options = {"modalities": ("image", "depth", "thermal"), **SMALL}
    cached, plain = Source(split, **options), Source(split, cache=False, **options)
    first = [cached[i] for i in (5, 3, 4, 5)]
    thawed = pickle.loads(pickle.dumps(cached))
    for item, index in zip(first, (5, 3, 4, 5), strict=True):
        for again in (cached[index], plain[np.int64(index)], thawed[index]):
            assert again.keys() == item.keys()
            for key in item:
                np.testing.assert_array_equal(again[key], item[key]) if key in options["modalities"] else None
                assert key in options["modalities"] or again[key] == item[key]


def test_the_cache_is_not_pickled_and_cannot_be_damaged():
    source = Source("val", image_size=32)
    empty = len(pickle.dumps(source))
    item = source[0]
    assert source[0]["image"] is item["image"]
    assert len(pickle.dumps(source)) == empty
    with pytest.raises(ValueError, match="read-only"):
        item["image"][0] = 0
    item["captions"].clear()
    item["negatives"].clear()
    assert len(source[0]["captions"]) == 5 and source[0]["negatives"]


def test_a_modality_does_not_change_the_others():
    alone, together = Source("train"), Source("train", modalities=("thermal", "image", "depth"))
    np.testing.assert_array_equal(alone[7]["image"], together[7]["image"])
    assert "depth" not in alone[7]
    for m in together.modalities:
        assert together[7][m].shape == (32, 32, 3) and together[7][m].dtype == np.uint8


@pytest.mark.parametrize("world", WORLDS)
def test_held_out_combinations_occur_in_test_and_zeroshot_alone(world):
    def share(source, count):
        return np.mean([any(source.world.held_out(*c) for c in combinations(source.scene(i))) for i in range(count)])

    for split, twins in (("train", False), ("train", True), ("val", False), ("winoground", False)):
        assert share(Source(split, world=world, twins=twins), 800) == 0
    assert 0.15 < share(Source("test", world=world), 800) < 0.45
    size = WORLDS[world]
    each = [(c, s) for c in range(size.colors) for s in range(size.shapes) if size.held_out(c, s)]
    assert len({c for c, _ in each}) == size.colors and len({s for _, s in each}) == size.shapes


@pytest.mark.parametrize("world", WORLDS)
def test_every_attribute_of_the_world_occurs_and_no_other(world):
    size, source = WORLDS[world], Source("train", world=world)
    scenes = [source.scene(i) for i in range(1500)]
    things = [t for s in scenes for t in s.things]
    for attribute, count in (("shape", size.shapes), ("color", size.colors), ("texture", size.textures), ("size", 2)):
        counts = np.bincount([getattr(t, attribute) for t in things])
        assert len(counts) == count and counts.min() > 0.8 * counts.mean(), attribute
    relations = np.bincount([s.relation for s in scenes if s.relation is not None])
    assert len(relations) == size.relations and relations.min() > 0.75 * relations.mean()
    assert 0.17 < np.mean([len(s.things) == 1 for s in scenes]) < 0.23
    assert 0.45 < np.mean([s.light for s in scenes]) < 0.55


@pytest.mark.parametrize("world", WORLDS)
def test_zeroshot_has_every_class_in_order(world):
    source = Source("zeroshot", world=world, **SMALL)
    colors, shapes = WORLDS[world].colors, WORLDS[world].shapes
    assert len(source) == 8 * colors * shapes == 8 * len(source.class_names) and len(
        set(source.class_names)
    ) * 8 == len(source)
    for i in range(len(source)):
        (thing,) = source.scene(i).things
        label = source[i]["label"]
        assert (thing.color, thing.shape) == divmod(label, shapes)
        assert source.class_names[label] in source[i]["captions"][0]
        assert source.held_out[label] == WORLDS[world].held_out(thing.color, thing.shape)
    assert source.held_out.sum() == max(colors, shapes) and source.held_out.dtype == bool
    assert all(t.count("{}") == 1 for t in source.templates)


@pytest.mark.parametrize("world", WORLDS)
def test_twins_differ_in_places_or_colors_alone(world):
    source, seen = Source("train", world=world, twins=True, **SMALL), {"places": 0, "colors": 0, "one": 0}
    assert source.group == 2 and Source("train").group == 1
    for k in range(300):
        a, b = source.scene(2 * k), source.scene(2 * k + 1)
        assert graph(a) == graph(Source("train", world=world).scene(k)) if k < 20 else True
        assert (a.light, a.tint) == (b.light, b.tint) and len(a.things) == len(b.things)
        assert (source[2 * k]["image"] != source[2 * k + 1]["image"]).mean() > 0.3  # other pixel noise
        changed = [
            {f for f in dataclasses.asdict(p) if getattr(p, f) != getattr(q, f)}
            for p, q in zip(a.things, b.things, strict=True)
        ]
        if len(a.things) == 1:
            assert changed[0] in ({"color"}, {"shape"}, {"texture"})
            seen["one"] += 1
            continue
        (p, q), (r, s) = a.things, b.things
        if changed == [{"color"}] * 2:
            assert (p.color, q.color) == (s.color, r.color) and a.relation == b.relation
            seen["colors"] += 1
        else:
            assert set().union(*changed) == {"x", "y", "z"} and b.relation == a.relation ^ 1
            assert (p.x, p.y, p.z, q.x, q.y, q.z) == (s.x, s.y, s.z, r.x, r.y, r.z)
            seen["places"] += 1
    assert seen["one"] > 30 and seen["places"] > seen["colors"] > 20


@pytest.mark.parametrize("world", WORLDS)
def test_winoground_pairs_say_different_things_in_the_same_words(world):
    source = Source("winoground", world=world)
    assert len(source) == 800 and source.group == 2
    kinds = [source[i]["kind"] for i in range(0, 800, 2)]
    assert {k: kinds.count(k) for k in sorted(set(kinds))} == {"relation": 133, "swap_color": 134, "swap_shape": 133}
    for k in range(400):
        a, b = source[2 * k], source[2 * k + 1]
        (said,), (other,) = a["captions"], b["captions"]
        assert a["kind"] == b["kind"] and said != other and sorted(said.split()) == sorted(other.split())
        # Where the scenes do not differ, neither do the pixels: the noise is the same.
        quiet = [render(source.scene(i), image_size=32, noise={"image": Silence()}) for i in (2 * k, 2 * k + 1)]
        equal = (quiet[0]["image"] == quiet[1]["image"]) & (quiet[0]["image"] < 255)  # 255 hides what was clipped
        change = abs(a["image"].astype(int) - b["image"])
        assert change[equal].max() <= 1 and change.max() > 20


def test_caption_noise_and_terseness_have_their_probability():
    clean = Source("train", size=1000, **SMALL)
    noisy = Source("train", size=1000, caption_noise=0.25, **SMALL)
    terse = Source("train", size=1000, terse=0.4, **SMALL)
    both = Source("train", size=1000, caption_noise=1.0, terse=1.0, **SMALL)
    right = [[a == b for a, b in zip(clean[i]["captions"], noisy[i]["captions"], strict=True)] for i in range(1000)]
    assert 0.72 < np.mean(right) < 0.78
    short = [[len(c.split()) == 2 for c in terse[i]["captions"]] for i in range(1000)]
    assert 0.37 < np.mean(short) < 0.43
    for i in range(200):
        own = [" ".join(c) for c in zip(*[clean[i]["captions"][0].split()[j:] for j in (0, 1)], strict=False)]
        assert all(c in own for c in terse[i]["captions"] if len(c.split()) == 2)
        np.testing.assert_array_equal(clean[i]["image"], noisy[i]["image"])
    assert all(len(c.split()) == 2 for i in range(50) for c in both[i]["captions"])
    # The strangers are no items: otherwise noise would also be a duplicate of another item's caption.
    strange = Source("train", size=1000, caption_noise=1.0, **SMALL)
    own = {clean[i]["captions"][0] for i in range(1000)}
    assert np.mean([strange[i]["captions"][0] in own for i in range(1000)]) < 0.1


def test_a_size_is_of_the_splits_that_have_no_fixed_one():
    sizes = {split: len(Source(split, world="easy", size=1001)) for split in (*SPLITS, "test_flipped", "zeroshot_hue")}
    fixed = {"zeroshot": 128, "winoground": 800, "zeroshot_hue": 128}
    assert sizes == {split: fixed.get(split, 1001) for split in sizes}


def test_negatives_can_be_chosen_by_kind_without_changing_the_others():
    everything, few = Source("val", **SMALL), Source("val", negatives=("replace_color", "swap_size"), **SMALL)
    for i in range(50):
        wanted = [n for n in everything[i]["negatives"] if n[0] in few.negatives]
        assert sorted(few[i]["negatives"]) == sorted(wanted)
    assert "negatives" not in Source("train", **SMALL)[0]
    assert "negatives" not in Source("val", negatives=(), **SMALL)[0]
    assert Source("train", negatives=("replace_shape",), **SMALL)[0]["negatives"]


@pytest.mark.parametrize("split", ["val", "test", "zeroshot"])
def test_shifted_splits_are_the_same_scenes_in_other_colors(split):
    plain, hue, cast = (
        Source(name, modalities=("image", "depth")) for name in (split, f"{split}_hue", f"{split}_cast")
    )
    again, off = Source(f"{split}_hue"), Source(f"{split}_cast", cast=0.0)
    gains = []
    for i in range(40):
        x, turned, lit = (source[i] for source in (plain, hue, cast))
        for other in (turned, lit):
            assert {k: v for k, v in other.items() if k != "image"}.keys() == {k for k in x if k != "image"}
            assert other["captions"] == x["captions"] and other.get("label") == x.get("label")
            np.testing.assert_array_equal(other["depth"], x["depth"])
        np.testing.assert_array_equal(again[i]["image"], turned["image"])
        np.testing.assert_array_equal(off[i]["image"], x["image"])
        np.testing.assert_allclose(turned["image"].max(2), x["image"].max(2), atol=1)  # a hue has no say in the value
        assert not np.array_equal(turned["image"], x["image"])
        below = lit["image"] < 250
        pairs = [(lit["image"][..., c][below[..., c]], x["image"][..., c][below[..., c]]) for c in range(3)]
        gains += [np.sum(a.astype(float)) / np.sum(b.astype(float)) for a, b in pairs if len(a)]
    assert 0.62 < min(gains) < 0.75 and 1.3 < max(gains) < 1.53
    if split == "zeroshot":
        assert hue.class_names == plain.class_names and len(hue) == len(plain)


@pytest.mark.parametrize("split", ["test", "zeroshot"])
def test_other_words_say_the_same_of_the_same_pictures_and_training_never_has_them(split):
    plain, other = Source(split, **SMALL), Source(f"{split}_words", **SMALL)
    frames = {frame.format("a ") for frame in shifts.FRAMES}
    assert not frames & {text.format("a ") for text in (*PARAPHRASES, *language.TEMPLATES)}
    train = Source("train", **SMALL)
    told = {word for i in range(200) for text in train[i]["captions"] for word in text.split()}
    new, rewritten = ({w for text in each for w in text.replace(",", "").split()} for each in (frames, PARAPHRASES))
    assert len(new - told) == 12 and (new - told) & rewritten == {"can", "canvas", "picture", "see", "we"}

    def frame_of(text, reworded):
        assert claims(text) == claims(reworded)
        return next(frame for frame in shifts.FRAMES if frame.format(shifts.bare(text)) == reworded)

    used = set()
    for i in range(20):
        x, y = plain[i], other[i]
        np.testing.assert_array_equal(x["image"], y["image"])
        used |= set(map(frame_of, x["captions"], y["captions"]))
        for (kind, true, false), (again, *reworded) in zip(x.get("negatives", ()), y.get("negatives", ()), strict=True):
            assert kind == again and frame_of(true, reworded[0]) == frame_of(false, reworded[1])
    assert used == set(shifts.FRAMES) and y["captions"] == Source(f"{split}_words", **SMALL)[19]["captions"]
    if split == "zeroshot":
        assert not set(other.templates) & set(plain.templates) and all(t.count("{}") == 1 for t in other.templates)


def test_tied_shapes_have_one_color_and_flipped_ones_each_others():
    tied = Source("train", tied=0.9, **SMALL)
    own = [all(t.color == tied.world.tied_color(t.shape) for t in tied.scene(i).things) for i in range(1000)]
    assert 0.87 < np.mean(own) < 0.93
    flipped = Source("test_flipped", **SMALL)
    for i in range(50):
        a, b = flipped.scene(i).things
        assert (a.color, b.color) == (tied.world.tied_color(b.shape), tied.world.tied_color(a.shape))
        assert not tied.world.held_out(a.color, a.shape) and not tied.world.held_out(b.color, b.shape)
    plain = Source("train", **SMALL)
    free = [i for i, is_tied in enumerate(own) if not is_tied]
    assert free and all(tied.scene(i) == plain.scene(i) for i in free)
    assert [i for i in range(100) if plain.scene(i) == tied.scene(i)] != list(range(100))


def test_colors_of_the_palette_stay_nearest_to_their_names_up_to_the_default_shift():
    from mmjax.data.pictures import pixels
    from mmjax.data.scenes.render import PALETTE

    def hues(turns):
        return np.array([colorsys.rgb_to_hsv(*c / 255)[0] for c in pixels.hue(palette, turns)[0].astype(float)])

    palette = np.round(PALETTE).astype(np.uint8)[None]
    for turns in (1 / 36, -1 / 36):
        distance = np.abs((hues(turns)[:, None] - hues(0.0)[None] + 0.5) % 1 - 0.5)
        np.testing.assert_array_equal(distance.argmin(axis=1), np.arange(len(PALETTE)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "training"}, "split='training'.*'train'"),
        ({"world": "esay"}, "world='esay'.*'easy'"),
        ({"size": 999999}, "size=999999.*1 to 32768"),
        ({"size": 0}, "size=0.*1 to 32768"),
        ({"split": "test", "size": 40000}, "size=40000.*1 to 32768"),
        ({"size": 7, "twins": True}, "size=7.*even.*6"),
        ({"split": "test", "twins": True}, "twins=True.*train"),
        ({"split": "val", "caption_noise": 0.5}, "caption_noise=0.5.*train"),
        ({"split": "test", "terse": 0.5}, "terse=0.5.*train"),
        ({"caption_noise": 1.5}, "caption_noise=1.5.*between 0 and 1"),
        ({"terse": -0.1}, "terse=-0.1.*between 0 and 1"),
        ({"modalities": ("image", "dept")}, "modalities='dept'.*'depth'"),
        ({"modalities": ()}, "modalities="),
        ({"modalities": ("image", "image")}, "each once"),
        ({"negatives": ("swap_colour",)}, "negatives='swap_colour'.*'swap_color'"),
        ({"split": "winoground", "negatives": ("swap_color",)}, "negatives=.*winoground"),
        ({"image_size": 4}, "image_size=4"),
        ({"seed": -1}, "seed=-1"),
        ({"split": "test_hues"}, "split='test_hues'.*'test_hue'"),
        ({"split": "test_hue", "hue": 0.7}, "hue=0.7.*between 0 and 0.5"),
        ({"split": "zeroshot_flipped"}, "split='zeroshot_flipped'"),
        ({"split": "test_words", "task": "questions"}, "task='questions': not for split='test_words'"),
        ({"split": "val", "tied": 0.5}, "tied=0.5.*train"),
    ],
)
def test_invalid_options_name_the_key_the_value_and_the_way_out(options, message):
    with pytest.raises(ConfigError, match=message):
        build(Source, {"split": "train", **options}, path="data.train")


def test_a_configuration_section_builds_it():
    section = {"split": "train", "world": "easy", "modalities": ["image", "depth"], "twins": True, "size": 64}
    source = build(Source, section, path="data.train")
    assert len(source) == 64 and set(source[0]) == {"id", "image", "depth", "captions", "scene"}
    with pytest.raises(ConfigError, match=r"data\.train\.world=3: expected str"):
        build(Source, {"split": "train", "world": 3}, path="data.train")


def test_it_needs_no_jax():
    code = "import sys, mmjax.data.sources.scenes as s; s.Source('test')[0]; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def true_answer(scene, text):
    """The answer that the words of a question ask for, from the scene graph alone."""
    words, things = text.split(), scene.things
    if words[-3:] == ["light", "or", "dark"]:
        return "light" if scene.light else "dark"
    colors = [w for w in words if w in worlds.COLORS]
    shapes = [w for w in words if w in worlds.SHAPES]
    named = [
        t
        for t in things
        if all(worlds.COLORS[t.color] == c for c in colors) and all(worlds.SHAPES[t.shape] == s for s in shapes)
    ]
    if words[:3] == ["is", "there", "a"]:
        return "yes" if named else "no"
    (thing,) = named
    attribute = next(a for a in ("color", "shape", "striped", "small") if a in words)
    return {
        "color": worlds.COLORS[thing.color], "shape": worlds.SHAPES[thing.shape],
        "striped": worlds.TEXTURES[thing.texture], "small": worlds.SIZES[thing.size],
    }[attribute]  # fmt: skip


@pytest.mark.parametrize(("split", "world"), [("train", "full"), ("test", "easy")])
def test_questions_have_the_answer_of_the_graph(split, world):
    source = Source(split, task="questions", world=world)
    items = [source[i] for i in range(600)]
    assert all(item["answer"] == true_answer(source.scene(i), item["captions"][0]) for i, item in enumerate(items))
    assert {item["kind"] for item in items} == set(KINDS) and {item["answer"] for item in items} <= set(ANSWERS)
    assert source.class_names == list(ANSWERS)
    yes = np.mean([item["answer"] == "yes" for item in items if item["kind"] == "existence"])
    assert 0.35 < yes < 0.65


def test_controls_hide_one_side_and_nothing_else():
    full, gray, mute = (Source("val", task="questions", hidden=h, size=8) for h in ("nothing", "image", "question"))
    for a, b, c in zip(full, gray, mute, strict=True):
        assert a["answer"] == b["answer"] == c["answer"] and a["captions"] == b["captions"]
        assert (b["image"] == 128).all() and (a["image"] == c["image"]).all() and c["captions"] == ["what"]
    with pytest.raises(ConfigError, match="hidden='image': is for other tasks than captions"):
        Source("val", hidden="image")
    both = Source("val", task="questions", answered=True, size=8)
    for one, text in zip(both, full, strict=True):
        assert one["captions"] == [f"Question: {text['captions'][0]}? Answer: {text['answer']}."]
    with pytest.raises(ConfigError, match="answered=True: is for questions alone"):
        Source("val", answered=True)
    with pytest.raises(ConfigError, match="task='questions': not for split='zeroshot'"):
        Source("zeroshot", task="questions")
    with pytest.raises(ConfigError, match=r"modalities=\('image',\): task='pairs' has two pictures"):
        Source("val", task="pairs")


def test_expressions_name_one_object_and_have_its_box():
    source = Source("test", task="expressions", size=60, image_size=64)
    for i, item in enumerate(source):
        scene, name = source.scene(i), item["captions"][0]
        (thing,) = (t for t in scene.things if name == f"a {worlds.COLORS[t.color]} {worlds.SHAPES[t.shape]}")
        left, top, right, bottom = (64 * x for x in item["box"])
        center = np.array([thing.x, thing.y])
        np.testing.assert_allclose([(left + right) / 2, (top + bottom) / 2], center, atol=1e-6)
        assert right - left == pytest.approx(2 * thing.radius) and item["box"] in item["proposals"]
        assert len(item["proposals"]) == len(scene.things) and "answer" not in item


def held(text, left, right):
    """Whether a statement about two scenes holds, read off its words."""
    words = text.split()
    if words[0:2] == ["the", "images"]:
        return ("same" in words) == (left.light == right.light)
    name = lambda thing: f"{worlds.COLORS[thing.color]} {worlds.SHAPES[thing.shape]}"  # noqa: E731
    if "large" in words:
        (a,) = (t for t in left.things if f"the {name(t)} in the left" in text)
        (b,) = (t for t in right.things if f"the {name(t)} in the right" in text)
        return ("not" not in words) == (a.size == b.size)
    side = left if words[1] == "left" else right
    return any(text.endswith(f"has a {name(t)}") for t in side.things)


def test_statements_about_pairs_hold_or_not_and_words_do_not_say_which():
    options = {"task": "pairs", "modalities": ("left", "right"), "image_size": 8}
    source = Source("train", **options, world="easy", size=2000)
    items = [source._asked(source.scene(i), i) for i in range(2000)]
    truth = [held(item["captions"][0], source.scene(i), source.right_scene(i)) for i, item in enumerate(items)]
    assert [item["answer"] for item in items] == [str(t) for t in truth] and source.class_names == ["False", "True"]
    for kind in ("side", "background", "size"):
        for word in ("", "left image has", "right image has", "same", "different", "as large", "not as large", "red"):
            own = [
                t for t, item in zip(truth, items, strict=True) if item["kind"] == kind and word in item["captions"][0]
            ]
            assert len(own) < 50 or abs(np.mean(own) - 0.5) < 3.5 / 2 / len(own) ** 0.5, (kind, word)
    # The left picture alone decides neither of the two kinds that compare.
    light = [source.scene(i).light for i, item in enumerate(items) if item["kind"] == "background"]
    same = [t == ("same" in i["captions"][0]) for t, i in zip(truth, items, strict=True) if i["kind"] == "background"]
    assert abs(np.mean(np.equal(light, same)) - 0.5) < 0.06
    assert (source[0]["left"] != source[0]["right"]).any() and not source.aligned
    gray = Source("train", **options, hidden="image", size=2)
    assert all((gray[0][side] == 128).all() for side in ("left", "right"))


def test_entailment_is_independent_of_the_words():
    source = Source("train", task="entailment", world="standard", size=2000, cache=False)
    counts = {}
    for i in range(2000):
        scene, item = source.scene(i), source._asked(source.scene(i), i)
        _, shape, _, value = item["captions"][0].split()
        things = [t for t in scene.things if worlds.SHAPES[t.shape] == shape]
        assert bool(things) == (item["answer"] != "neutral")
        if things:
            (thing,) = things
            shown = {worlds.COLORS[thing.color], worlds.TEXTURES[thing.texture], worlds.SIZES[thing.size]}
            assert (value in shown) == (item["answer"] == "entailment")
        counts.setdefault(item["captions"][0], []).append(item["answer"])
        counts.setdefault(item["kind"], []).append(item["answer"])
    assert source.class_names == ["contradiction", "neutral", "entailment"]
    for text, labels in counts.items():
        for label in source.class_names:
            share, sd = np.mean([one == label for one in labels]), (2 / 9 / len(labels)) ** 0.5
            assert abs(share - 1 / 3) < 4 * sd, (text, label)
