"""What models with a fusion encoder learn on scenes: to answer questions, and to judge statements."""

import json
from pathlib import Path

import pytest

from support import command

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def metrics(workdir, name, arguments):
    """Of the test split, after a run of one of the shipped configurations on one device."""
    config = f"--config={CONFIGS / name}:{arguments}"
    # Minutes on two idle cores.
    command.run("train", config, f"--workdir={workdir}", "--config.eval.every_steps=5000", timeout=1800, XLA_FLAGS="")
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.slow
def test_answers_need_the_question_and_the_picture(tmp_path):
    """The controls train and measure without one of them."""
    got = {
        hidden: metrics(tmp_path / hidden, "scenes_vqa.py", f"hidden={hidden},world=easy,images=16384,steps={steps}")
        for hidden, steps in (("nothing", 600), ("image", 150), ("question", 150))
    }
    seeing = got["nothing"]["test/vqa/accuracy"]
    others = (got["image"]["test/vqa/accuracy"], got["question"]["test/vqa/accuracy"])
    assert seeing > max(*others, got["nothing"]["test/vqa/accuracy_other_image"]) + 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("task", "evaluator"), [("entailment", "snli_ve"), ("pairs", "nlvr2")])
def test_statements_are_judged_by_the_pictures(tmp_path, task, evaluator):
    """Words alone are good for a third and for a half."""
    got = metrics(tmp_path / "run", "scenes_vqa.py", f"task={task},world=easy,images=16384,steps=800")
    alone = metrics(tmp_path / "alone", "scenes_vqa.py", f"task={task},world=easy,hidden=image,steps=100")
    chance = 1 / 3 if task == "entailment" else 1 / 2
    assert got[f"test/{evaluator}/accuracy"] > chance + 0.1
    assert abs(alone[f"test/{evaluator}/accuracy"] - chance) < 0.06
    assert got[f"test/{evaluator}/accuracy_other_image"] < chance + 0.1
