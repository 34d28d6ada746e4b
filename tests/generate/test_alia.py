"""ALIA's blocks: settings, edits, and the two filters."""

import contextlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmjax.core.config import ConfigError
from mmjax.data.scenes import graph
from mmjax.generate.backend import Failure
from mmjax.generate.backends.scenes import ImageGenerator
from mmjax.generate.blocks import confidence, domains, edit
from mmjax.generate.blocks.semantic import is_positive
from mmjax.generate.inputs import Inputs
from mmjax.generate.job import check_inputs
from mmjax.generate.recipe import make_recipe
from support import generating
from support.generating import record

MODELS = {role: {"name": "scenes"} for role in ("captioner", "writer", "scorer", "labeler", "image_generator")}
STAGES = (
    ("caption", {}), ("repeat", {}), ("domains", {"subject": "thing"}), ("edit", {"mode": "image", "n": 2}),
    ("semantic", {}), ("classify", {}), ("confidence", {}),
)  # fmt: skip


class Seeds:
    seed = staticmethod(lambda record, *draw: 0)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.integers(1, 3), st.floats(0.01, 100), st.floats(-1, 1))
def test_the_semantic_filter_keeps_the_scale_and_more_negatives_keep_less(cosines, positives, scale, more):
    values = np.array(cosines)
    assert is_positive(values * scale, positives) == is_positive(values, positives) or len(set(values)) < len(values)
    assert is_positive(np.append(values, more), positives) <= is_positive(values, positives)
    assert not is_positive(np.append(values, math.nan), positives)


@pytest.mark.parametrize(
    ("predicted", "p", "reason"),
    [
        ("bird", 0.81, "too easy"), ("bird", 0.8, ""), ("bird", 0.3, ""),
        ("fish", 0.81, "mislabeled"), ("fish", 0.8, ""), ("fish", 0.3, ""),
    ],
)  # fmt: skip
def test_the_confidence_filter_is_alias_rule(predicted, p, reason):
    originals = [
        record(id=str(n), fields={"class_name": "bird", "self_confidence": q}) for n, q in enumerate((0.7, 0.9))
    ]
    fields = {"class_name": "bird", "predicted": predicted, "confidence": p}
    children = [
        record(id="0.0", parent_id="0", fields=fields),
        record(id="0.1", parent_id="0", fields=fields | {"class_name": "newt"}),  # of a class without originals
    ]
    block = confidence.Block()
    decision = block.decide([v for r in (*originals, *children) if (v := block.collect(r)) is not None], None)
    assert decision == {"bird": pytest.approx(0.8)}
    child, empty, *rest = block.apply([*children, *originals], {"bird": 0.8}, None)
    assert child.reason == (reason and f"confidence: {reason}") and child.keep == (not reason)
    assert empty.keep and all(r.keep for r in rest)


@pytest.fixture(scope="module", params=[1, 2, 3])
def output(tmp_path_factory, request):
    """ALIA's job and records, in each of three worlds with draws of their own."""
    models = MODELS | {"image_generator": {"name": "scenes", "error": 0.6}}
    job = generating.make_job(
        tmp_path_factory.mktemp("alia") / "out",
        STAGES,
        models,
        seed=request.param,
        source={"size": 60, "image_size": 8, "seed": request.param},
    )
    return job, generating.run(job)


def test_settings_are_asked_for_once_and_named_in_the_decisions(output):
    job, records = output
    files = sorted(path.name for path in (job.output / "decisions").iterdir())
    assert files == ["2-domains.json", "5-classify.json", "6-confidence.json"]
    found = records[0].fields["domains"]
    assert 1 < len(found) <= 10 and all("{}" in text and text.startswith("a photo of a {}") for text in found)
    assert all(r.fields["domains"] == found for r in records if not r.parent_id)
    assert any(entry["block"] == "domains" and entry["prompt_sha"] for entry in records[0].provenance)


def test_children_have_the_class_of_their_parent_and_say_what_made_them(output):
    _, records = output
    by_id = {r.id: r for r in records}
    children = [r for r in records if r.parent_id]
    assert len(children) == 120
    for child in children:
        parent = by_id[child.parent_id]
        assert child.fields["class_name"] == parent.fields["class_name"] and child.split == parent.split
        (made,) = child.captions
        assert parent.fields["class_name"] in made["text"] and made["source"] == "edit"
        entry = child.provenance[made["by"]]
        assert entry["params"]["prompt"] == made["text"] and entry["params"]["mode"] == "image"


@pytest.mark.parametrize(
    ("stage", "role", "refused"),
    [
        (("classify", {}), "labeler", True),
        (("classify", {"classes": ("cat", "dog")}), "labeler", False),
        (("semantic", {}), "scorer", True),
        (("semantic", {"field": "predicted"}), "scorer", False),
        (("edit", {"mode": "image", "prompts": ("a {} at night",)}), "image_generator", True),
        (("edit", {"mode": "image", "prompts": ("at night",)}), "image_generator", False),
        (("edit", {"mode": "text", "sources": ("raw",)}), "image_generator", False),
    ],
)
def test_data_without_classes_is_refused_before_any_model_is_asked(tmp_path, stage, role, refused):
    recipe = make_recipe({"stages": (stage,), "models": {role: {"name": "scenes"}}})
    check_inputs(recipe, Inputs(generating.SCENES, splits=("train",)))
    (tmp_path / "a.csv").write_text("image,caption\na.png,a cat\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    inputs = Inputs({"name": "captions", "path": str(tmp_path / "a.csv")}, splits=("train",))
    message = rf"stages.{stage[0]}: needs data with classes, and the first 1 examples have none"
    with pytest.raises(ConfigError, match=message) if refused else contextlib.nullcontext():
        check_inputs(recipe, inputs)


def test_a_record_without_a_class_among_others_is_not_edited_by_a_prompt_for_classes():
    block = edit.Block(mode="image", prompts=("a {} at night",))
    assert block._choose(record(fields={"class_name": "bird"}), Seeds) == ["a bird at night"]
    assert block._choose(record(), Seeds) == []


def test_failed_edits_are_removed_and_good_ones_are_not(output):
    """The note's criterion, at an error of 60 %: precision and recall of removals of at least 0.9."""
    _, records = output
    children = [r for r in records if r.parent_id]
    failed = np.array([r.fields["scene"]["edit"] != "ok" for r in children])
    removed = np.array([not r.keep for r in children])
    assert 30 < failed.sum() < 110
    assert (failed & removed).sum() / removed.sum() >= 0.9
    assert (failed & removed).sum() / failed.sum() >= 0.9
    reasons = {r.reason for r in children if not r.keep}
    assert reasons == {
        "semantic: another prompt fits better than the class", "confidence: too easy", "confidence: mislabeled",
    }  # fmt: skip


def test_a_summary_that_names_nothing_ends_the_run_with_the_reply(tmp_path):
    models = MODELS | {"writer": {"name": "scenes", "corrupt": 1.0}}
    with pytest.raises(ConfigError, match=r"models.writer: the reply names no setting as 'a photo of a thing' …, but"):
        for seed in range(9):
            job = generating.make_job(tmp_path / str(seed), STAGES, models, source={"size": 4}, seed=seed)
            generating.run(job)


@pytest.mark.parametrize("parents", [True, False])
@pytest.mark.parametrize("name", ["edit", "restyle", "inpaint"])
def test_a_picture_that_cannot_be_made_says_why_and_its_parent_stays(tmp_path, monkeypatch, name, parents):
    options = {"edit": {"mode": "image", "n": 2, "prompts": ("at night", "in snow")}, "restyle": {"n": 2}}
    before = (("objects", {}), ("detect", {}), ("attributes", {})) if name == "inpaint" else ()
    models = MODELS | {"detector": {"name": "scenes"}}
    roles = ("writer", "detector", "image_generator") if name == "inpaint" else ("image_generator",)
    make, numbers = ImageGenerator.make, itertools.count()

    def moody(self, requests, seeds):
        made = make(self, requests, seeds)
        return [Failure("held back") if next(numbers) % 5 in (0, 2, 3) else one for one in made]

    monkeypatch.setattr(ImageGenerator, "make", moody)
    stage = (name, options.get(name, {}) | ({} if parents or name == "inpaint" else {"parents": False}))
    job = generating.make_job(tmp_path / "out", (*before, stage), {r: models[r] for r in roles}, source={"size": 12})
    records = generating.run(job)
    children = [one for one in records if one.parent_id]
    assert len({one.id for one in records}) == len(records) and len(children) >= 20
    for one in children:
        assert one.keep == bool(one.image) == bool(one.captions)
        assert one.reason == ("" if one.keep else f"{name}: held back")
    assert {one.keep for one in children} == {True, False}
    stays = parents or name == "inpaint"
    assert all(one.keep is stays for one in records if not one.parent_id)


def test_pictures_from_texts_and_boxes():
    boxes = (("detect", {"phrases": ("a red circle", "a blue square", "a green triangle")}),)
    detector = {"detector": {"name": "scenes"}, "image_generator": {"name": "scenes"}}
    for mode, sources in (("text", ("raw",)), ("layout", ("raw",))):
        made = generating.make_records(
            (*boxes, ("edit", {"mode": mode, "sources": sources, "parents": False})), detector
        )
        children = [r for r in made if r.parent_id]
        assert len(children) == 24 and all(r.size == (32, 32) for r in children)
        assert all(r.reason == "edit: only its children are kept" for r in made if not r.parent_id)
        if mode == "text":
            true = [
                graph.is_true(graph.from_json(r.fields["scene"])[0], r.texts[0].split(" in the ")[0]) for r in children
            ]
            assert np.mean(true) > 0.8
        else:
            assert any(r.boxes for r in children)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: domains.Block(subject="x", prefix="a photo"), r"prefix='a photo': has no \{\}"),
        (lambda: edit.Block(mode="text", prompts=("a",), sources=("raw",)), "prompts="),
    ],
)
def test_a_wrong_option_is_one_line(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
