"""CFT-CLIP's exchanged names and BiAug's edited pictures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data import pictures
from mmjax.data.open_source import open_source
from mmjax.data.scenes import graph
from mmjax.generate.backend import Entity
from mmjax.generate.blocks import score_gap
from mmjax.generate.blocks.entity_negatives import is_filled, mask
from mmjax.generate.blocks.inpaint import box_mask, paste
from support import generating
from support.generating import record

NAMES = {"tagger": {"name": "scenes"}, "mask_filler": {"name": "scenes"}, "scorer": {"name": "scenes"}}
BIAUG = {
    "writer": {"name": "scenes"}, "detector": {"name": "scenes"}, "image_generator": {"name": "scenes"},
    "scorer": {"name": "scenes"},
}  # fmt: skip
STAGES = (("objects", {}), ("detect", {}), ("attributes", {}), ("inpaint", {}), ("score", {}), ("score_gap", {}))


# CFT-CLIP.


@settings(max_examples=50)
@given(st.lists(st.text("ab é", min_size=1, max_size=6), min_size=1, max_size=8), st.floats(0, 1), st.integers(0, 99))
def test_masks_keep_the_budget_and_all_else(words, budget, seed):
    text = "#".join(words)
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1].tolist()
    names = [Entity(s, s + len(w), "PERSON") for s, w in zip(starts[::2], words[::2], strict=True)]
    masked = mask(names, text, budget, np.random.default_rng(seed))
    if masked is None:
        return
    pieces = masked.split("[MASK]")
    assert text.startswith(pieces[0]) and text.endswith(pieces[-1]) and 1 <= len(pieces) - 1 <= len(names)
    left = sum(len("".join(piece.split())) for piece in pieces)
    assert len("".join(text.split())) - left <= int(budget * len("".join(text.split())))


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Ada met Bob", True), ("Ada meets Bob", False), ("Ada met ##b", False), ("Ada Lou met Bob", False),
        ("Ada met [MASK]", False), ("Ada met Bob.", True), (" met Bob", False), ("ada met Bob", True),
    ],
)  # fmt: skip
def test_a_filled_text_has_one_whole_word_for_each_mask(text, right):
    assert is_filled("[MASK] met [MASK]", text) is right


def test_negatives_change_names_alone_and_fit_less():
    made = generating.make_records((("entity_negatives", {}),), NAMES)
    assert all(one.keep for one in made) and sum(len(one.negatives) for one in made) > 60
    shapes = {"circle", "square", "triangle", "cross", "star", "ring", "diamond", "hexagon"}
    for one in made:
        for negative in one.negatives:
            true = one.captions[negative["of"]]["text"].split()
            changed = [(a, b) for a, b in zip(true, negative["text"].split(), strict=True) if a != b]
            assert changed and all({a, b} <= shapes for a, b in changed)
            assert negative["scores"]["clip"] < negative["scores"]["clip_true"]
            assert one.provenance[negative["by"]]["model"] == "scenes.maskfiller"


def test_what_does_not_fit_less_is_no_negative():
    made = generating.make_records(
        (("entity_negatives", {"tries": 2}),), NAMES | {"scorer": {"name": "scenes", "error": 1.0}}
    )
    negatives = [negative["scores"] for one in made for negative in one.negatives]
    assert 20 < len(negatives) < 120 and all(scores["clip"] < scores["clip_true"] for scores in negatives)


def test_pieces_of_words_are_never_taken_and_texts_without_names_have_no_negative():
    models = NAMES | {"mask_filler": {"name": "scenes", "error": 0.8}}
    made = generating.make_records((("entity_negatives", {"tries": 3}),), models)
    found = [negative["text"] for one in made for negative in one.negatives]
    assert found and not any("#" in text for text in found) and len(found) < 120
    other = generating.make_records((("entity_negatives", {"kinds": ("PLACE",)}),), NAMES)
    assert all(one.keep and not one.negatives for one in other)


# BiAug.


@pytest.fixture(scope="module")
def family():
    return generating.make_records(STAGES, BIAUG)


def test_children_show_the_wrong_caption_and_nothing_else_changes(family):
    by_id = {one.id: one for one in family}
    made = [one for one in family if one.parent_id]
    children = [one for one in made if one.keep]
    # The scorer's noise is as large as a value's share of a long caption, so a few are doubted.
    assert len(children) > 20 and len(made) - len(children) <= 2
    assert all(one.reason.startswith("score_gap: ") for one in made if not one.keep)
    assert sum(" to the " in c.captions[0]["text"] for c in children) > 5  # of two things, with their relation
    for child in children:
        parent = by_id[child.parent_id]
        assert child.split == parent.split and child.neg_image_ids == [parent.id] and child.id in parent.neg_image_ids
        ((true,), (wrong,)) = child.captions, child.negatives
        a, b = true["text"].split(), wrong["text"].split()
        assert len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1
        assert {wrong["kind"]} <= {"color", "shape", "material", "other"}
        scene, _ = graph.from_json(child.fields["scene"])
        assert graph.is_true(scene, true["text"]) and true["scores"]["clip"] > wrong["scores"]["clip"]
        assert child.provenance[true["by"]]["model"] == "scenes.writer"


def test_edits_are_of_all_kinds_and_boxes_and_a_caption_of_two_stands_once(family):
    parents = [one for one in family if not one.parent_id]
    edits = [[e for e in one.fields["edits"] if e["wrong"] in {n["text"] for n in one.negatives}] for one in parents]
    assert {edit["kind"] for own in edits for edit in own} == {"color", "shape", "material", "other"}
    assert {edit["box"] for own in edits for edit in own} == {0, 1}
    texts = [[c["text"] for c in one.captions] for one in parents]
    assert {len(own) for own in texts} == {5, 6} and all(len(set(own)) == len(own) for own in texts)


def test_what_was_said_of_the_parents_picture_is_not_said_of_a_changed_one(family):
    """Its glosses, answers and class may not hold, and the source ``generated`` would train on them."""
    children = [one for one in family if one.parent_id]
    assert {name for one in children for name in one.fields} == {"scene"}
    stages = (("caption", {}), ("edit", {"mode": "text", "sources": ("caption",)}))
    models = {"captioner": {"name": "scenes"}, "image_generator": {"name": "scenes"}}
    drawn = [one for one in generating.make_records(stages, models) if one.parent_id]
    assert drawn and {name for one in drawn for name in one.fields} == {"scene"}


def test_pixels_outside_of_the_boxes_are_the_parents(family):
    by_id = {one.id: one for one in family}
    children = [one for one in family if one.parent_id]
    source = open_source(generating.SCENES, split="train")
    for child in children[:12]:
        parent = by_id[child.parent_id]
        old, new = source[parent.index]["image"], pictures.decode(child.image)
        inside = np.zeros(old.shape[:2], bool)
        for box in parent.boxes:
            inside |= box_mask(box["box"], old.shape[:2], 0.02)
        assert (old[~inside] == new[~inside]).all() and (old[inside] != new[inside]).any()


def test_boxes_lie_in_the_picture_and_a_record_without_any_stays_as_it_was(family):
    boxes = [box["box"] for one in family for box in one.boxes]
    assert boxes and all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in boxes)
    models = BIAUG | {"detector": {"name": "scenes", "error": 1.0}}
    models = BIAUG | {"detector": {"name": "scenes", "error": 1.0}}
    models.pop("scorer")
    blind = generating.make_records(STAGES[:4], models, source={"size": 6})
    for one in blind:
        if not one.boxes and not one.parent_id:
            assert one.keep and not one.negatives and len(one.captions) == 5


def test_edits_that_did_not_happen_are_filtered():
    models = BIAUG | {"image_generator": {"name": "scenes", "error": 0.5}, "writer": {"name": "scenes", "error": 0.2}}
    made = [one for seed in range(3) for one in generating.make_records(STAGES, models, seed=seed)]
    children = [one for one in made if one.parent_id]

    def is_wrong(one):
        scene, _ = graph.from_json(one.fields["scene"])
        return not graph.is_true(scene, one.captions[0]["text"])

    wrong, kept = (np.array([check(one) for one in children]) for check in (is_wrong, lambda one: one.keep))
    unchanged = np.array([one.fields["scene"]["edit"] == "unchanged" for one in children])
    assert wrong.mean() > 0.2 and wrong[kept].mean() < 0.7 * wrong.mean()
    assert unchanged.sum() > 3 and (wrong & unchanged & kept).sum() == 0


def test_the_gap_takes_out_what_is_not_worse_and_what_has_no_score():
    captions = [{"text": "t", "source": "raw", "weight": 1.0, "scores": {"clip": 0.3}}]
    negatives = [
        {"text": name, "kind": "color", "of": 0, "scores": {"clip": value}}
        for name, value in (("lower", 0.2), ("equal", 0.3), ("nan", float("nan")))
    ] + [{"text": "unscored", "kind": "color", "of": 0}]
    for parent, kept in (("", True), ("0", True)):
        (made,) = score_gap.Block()([record(parent_id=parent, captions=captions, negatives=list(negatives))], None)
        assert [n["text"] for n in made.negatives] == ["lower"] and made.keep is kept
    (child,) = score_gap.Block()([record(parent_id="0", captions=captions, negatives=negatives[1:])], None)
    assert not child.keep and not child.negatives


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(1, 9), st.integers(1, 9))
def test_a_mask_is_never_empty(box, height, width):
    x1, x2 = sorted(box[::2])
    y1, y2 = sorted(box[1::2])
    mask_of = box_mask((x1, y1, x2, y2), (height, width))
    assert mask_of.shape == (height, width) and mask_of.any()
    old = np.zeros((height, width, 3), np.uint8)
    pasted = paste(old, np.full((4, 4, 3), 255, np.uint8), mask_of)
    assert (pasted[~mask_of] == 0).all() and (pasted[mask_of] > 250).all()
