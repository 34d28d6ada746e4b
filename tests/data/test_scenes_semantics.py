"""Every caption true, every negative false, by a judge that shares no code with the generator."""

import numpy as np
import pytest

from mmjax.data.scenes.negatives import KINDS
from mmjax.data.scenes.world import WORLDS
from mmjax.data.sources.scenes import SPLITS, Source
from support.scene_semantics import Judge, parse, retrieval_ceiling

COUNT = 1000


def judged(split, **options):
    source = Source(split, image_size=8, **options)
    count = min(COUNT, len(source))
    return source, Judge([source.scene(i) for i in range(count)]), count


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("split", [*SPLITS, "twins"])
def test_every_caption_is_true(world, split):
    source, judge, count = judged(*(("train",) if split == "twins" else (split,)), world=world, twins=split == "twins")
    for i in range(count):
        item = source[i]
        assert len(item["captions"]) == (1 if split == "winoground" else 5)
        for caption in item["captions"]:
            assert judge(caption)[i], (i, caption)
            assert len(caption.split()) <= 17
        # A pair's full captions (a Winoground pair's only ones) are false of the partner.
        if source.group == 2:
            assert not judge(item["captions"][0])[i ^ 1], (i, item["captions"])
        if split == "zeroshot":
            fits = [judge(source.templates[0].format(name))[i] for name in source.class_names]
            assert np.flatnonzero(fits).tolist() == [item["label"]]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("split", ["val", "test", "train"])
def test_every_negative_is_false_and_its_positive_true(world, split):
    source, judge, count = judged(split, world=world, negatives=KINDS)
    seen = dict.fromkeys(KINDS, 0)
    for i in range(count):
        triples = source[i]["negatives"]
        for true in {true for _, true, _ in triples}:
            assert judge(true)[i], (i, true)
        for kind, true, false in triples:
            seen[kind] += 1
            assert not judge(false)[i], (i, kind, false)
            _check_kind(kind, true, false)
    two = sum(len(source.scene(i).things) == 2 for i in range(count))
    everywhere = [k for k in KINDS if not k.startswith("swap") and k != "replace_relation"]
    assert all(seen[k] == count for k in everywhere), seen
    assert seen["swap_object"] == seen["swap_color"] == seen["replace_relation"] == two
    assert 0.4 < seen["swap_size"] / two < 0.6 and 0.4 < seen["swap_texture"] / two < 0.75


def _check_kind(kind, true, false):
    """The two captions differ as the kind says, by what the parser reads in them."""
    (a, links, *_), (b, other, *_) = parse(true), parse(false)
    action, what = kind.split("_")
    if action == "swap" and what == "object":
        assert a == b[::-1] and links == other
    elif action == "swap":
        assert links == other and [t[what] for t in a] == [t[what] for t in b][::-1]
        assert [{**t, what: 0} for t in a] == [{**t, what: 0} for t in b]
    elif kind == "replace_relation":
        assert a == b and links != other
    elif action == "replace":
        changed = [(s, t) for s, t in zip(a, b, strict=True) if s != t]
        assert links == other and len(changed) == 1 and {**changed[0][0], what: 0} == {**changed[0][1], what: 0}
    elif kind == "add_attribute":
        assert links == other and sorted(map(len, b)) == sorted([*map(len, a[1:]), len(a[0]) + 1])
    else:
        assert b[:-1] == a and other[:-1] == links and other[-1] == "and"
        assert b[-1]["shape"] not in [t["shape"] for t in a]
    if action != "add" and not {"in front of", "behind"} & {p for p in ("in front of", "behind") if p in true}:
        assert len(true.split()) == len(false.split())


def test_replaced_names_are_not_betrayed_by_being_held_out():
    for world in WORLDS:
        source = Source("val", world=world, image_size=8)
        held_out = {n for n, h in zip(*_classes(world), strict=True) if h}
        for i in range(300):
            for kind, _, false in source[i]["negatives"]:
                if kind in ("replace_shape", "replace_color", "add_object"):
                    assert not any(name in false for name in held_out), (kind, false)


def _classes(world):
    source = Source("zeroshot", world=world)
    return source.class_names, source.held_out


# Expected R@1/5/10 in % on the 1,000 test images of a perfect reader: text to image, image to text.
CEILING = {
    "easy": ([69.8, 98.4, 100.0], [98.3, 100.0, 100.0]),
    "standard": ([94.4, 100.0, 100.0], [99.8, 100.0, 100.0]),
    "full": ([98.4, 100.0, 100.0], [100.0, 100.0, 100.0]),
}


@pytest.mark.parametrize("world", WORLDS)
def test_retrieval_ceiling(world):
    source, judge, count = judged("test", world=world)
    truth = np.array([judge(c) for i in range(count) for c in source[i]["captions"]])
    t2i, i2t = retrieval_ceiling(truth, own=np.repeat(np.arange(count), 5))
    np.testing.assert_allclose(t2i, CEILING[world][0], atol=0.06)
    np.testing.assert_allclose(i2t, CEILING[world][1], atol=0.06)


def test_the_ceiling_counts_as_it_says():
    # Image 0 has a caption that also fits image 1, image 1 one of its own and the shared one.
    truth = np.array([[True, True], [True, True], [False, True]])
    t2i, i2t = retrieval_ceiling(truth, own=np.array([0, 1, 1]))
    np.testing.assert_allclose(t2i, [100 * (0.5 + 0.5 + 1) / 3, 100, 100])
    np.testing.assert_allclose(i2t, [(50 + 100) / 2, 100, 100])


def test_the_judge_rejects_what_is_false_or_malformed():
    source, judge, count = judged("train")
    wrong = [judge(source[(i + 1) % count]["captions"][0])[i] for i in range(count)]
    assert np.mean(wrong) < 0.02
    for sentence in (
        "a red",
        "red circle",
        "a circle red",
        "a red circle above",
        "a blue circle near a red square",
        "",
    ):
        with pytest.raises(ValueError, match="cannot parse"):
            judge(sentence)
