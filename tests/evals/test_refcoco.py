"""Grounding: maps and boxes measured by hand, and bicubic interpolation as torch has it."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals import refcoco
from mmjax.evals.common.pair_scores import Matcher
from mmjax.experiment import EvalConfig
from mmjax.train.evaluation import Evaluation
from support.towers import Source, Towers

HEAT = np.zeros((4, 4), np.float32)
HEAT[1, 2], HEAT[3, 0] = 3.0, 1.0
BOX = (0.5, 0.25, 0.75, 0.5)  # the patch of the largest value


def prepared(examples, heat=HEAT):
    """Towers, an embedder whose map of each pair is ``heat``, and a source."""
    towers = Towers()
    matcher = Matcher(
        lambda params, images: jnp.zeros((4, 1, 1)),
        None,
        grad_cam=lambda params, tokens, ids: jnp.broadcast_to(jnp.asarray(heat.ravel()), (len(ids), heat.size)),
    )
    items = [
        {"id": i, "image": np.full((2, 2, 3), i, np.uint8), "captions": [f"thing {i}"], **example}
        for i, example in enumerate(examples)
    ]
    return towers, towers.embedder(matcher=matcher), Source(items)


def evaluate(examples, heat=HEAT, **options):
    towers, embedder, source = prepared(examples, heat)
    return refcoco.Evaluator(lambda split: source, **options)(embedder.bind(towers.params))


def test_maps_are_measured_against_boxes():
    got = evaluate([{"box": BOX}, {"box": (0.0, 0.75, 0.25, 1.0)}])
    assert got["pointing"] == 0.5 and got["area_of_box"] == pytest.approx(1 / 16)
    assert got["mass_gain"] == pytest.approx(got["mass_in_box"] - 1 / 16) and "accuracy" not in got
    assert got["mass_in_box"] > 0.25  # 3/4 and 1/4 before the map is smoothed
    flat = evaluate([{"box": BOX}], heat=np.ones((4, 4), np.float32))
    assert flat["mass_gain"] == pytest.approx(0, abs=1e-6)
    assert got["num_examples"] == 2 and got["num_unreadable"] == 0
    with pytest.raises(ConfigError, match=r"example 0 \(0\) has no box.*eval\.options\.refcoco\.source"):
        evaluate([{}])


def test_the_panel_shows_pictures_maps_and_what_was_measured():
    examples = [{"box": BOX}, {"box": (0.0, 0.75, 0.25, 1.0)}]
    towers, embedder, source = prepared(examples)
    evaluation = Evaluation(EvalConfig(final_tasks=("refcoco",)), embedder, lambda split, options: source)
    measured, panel = evaluate(examples), evaluation.grounding_panel(towers.params, count=8)
    assert [(one["text"], tuple(one["box"]), one["image"].max()) for one in panel] == [
        ("thing 0", BOX, 0), ("thing 1", (0.0, 0.75, 0.25, 1.0), 1),
    ]  # fmt: skip
    for name in ("pointing", "mass_in_box", "area_of_box"):
        assert np.mean([one[name] for one in panel]) == pytest.approx(measured[name])
    row, column = np.unravel_index(panel[1]["heat"].argmax(), panel[1]["heat"].shape)
    assert row // 8 == 1 and column // 8 == 2  # eight points along each patch
    assert len(evaluation.grounding_panel(towers.params, count=1)) == 1
    others = Evaluation(EvalConfig(final_tasks=("retrieval",)), embedder, lambda split, options: source)
    assert others.grounding_panel(towers.params, count=8) == []


def test_the_best_proposal_counts_if_half_of_it_is_the_box():
    wide, other = (0.0, 0.0, 1.0, 1.0), (0.0, 0.5, 0.5, 1.0)
    near = (0.5, 0.25, 0.75, 0.625)  # one and a half times the box
    examples = [
        {"box": BOX, "proposals": [wide, near, other], "kind": "testA"},
        {"box": BOX, "proposals": [wide, other], "kind": "testB"},
    ]
    got = evaluate(examples)
    assert got["accuracy"] == 0.5 and got["accuracy_testA"] == 1 and got["accuracy_testB"] == 0
    assert evaluate(examples, power=0.0)["accuracy"] == 0  # the largest then has the largest sum
    assert refcoco.overlap(BOX, near) == pytest.approx(2 / 3) and refcoco.overlap(BOX, other) == 0


def test_enlarging_is_torchs_bicubic_interpolation():
    weights = refcoco._bicubic(4)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(weights[::-1, ::-1], weights, atol=1e-12)
    # torch: interpolate of [0, 1, 0, 0] by 8, bicubic, at 3/16 of a pixel before the second one.
    near, a = 3 / 16, -0.75
    assert weights[10, 1] == pytest.approx((a + 2) * near**3 - (a + 3) * near**2 + 1)
    torch = pytest.importorskip("torch")
    one = torch.nn.functional.interpolate(torch.tensor(HEAT)[None, None].double(), scale_factor=8, mode="bicubic")
    np.testing.assert_allclose(weights @ HEAT.astype(float) @ weights.T, one[0, 0].numpy(), atol=1e-9)


def test_the_suite_finds_refcoco(tmp_path):
    for name in ("refcoco+/refs(unc).p", "refcoco+/dets.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert refcoco.Evaluator.find(tmp_path) == {}
    (tmp_path / "coco/train2014").mkdir(parents=True)
    assert refcoco.Evaluator.find(tmp_path).keys() == {"refcoco+_val", "refcoco+_test"}
    options = refcoco.Evaluator.find(tmp_path)["refcoco+_val"]["source"]
    assert options["proposals"] == str(tmp_path / "refcoco+/dets.json") and options["name"] == "refcoco"
