"""What models with a fusion encoder learn on scenes: to answer questions."""

import json
from pathlib import Path

import pytest

from support import command

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def metrics(workdir, name, arguments):
    """Of the test split, after a run of one of the shipped configurations on one device."""
    config = f"--config={CONFIGS / name}:{arguments}"
    command.run("train", config, f"--workdir={workdir}", "--config.eval.every_steps=5000", XLA_FLAGS="")
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
