"""``mmjax generate``: what people type, and what they see."""

import json

import pytest

from mmjax import cli
from mmjax.data.open_source import open_source

SCENES = ["--input=scenes", "--option", "world=easy", "--option", "size=12", "--option", "caption_noise=0.6"]


def ran(capfd, *words, status=0):
    assert cli.main(["generate", *words]) == status
    return capfd.readouterr()


def test_a_recipe_by_its_name_makes_what_a_run_can_read(tmp_path, capfd):
    words = ["--config=nguyen:fraction=0.5", *SCENES, f"--output={tmp_path}/out"]
    shown = ran(capfd, *words)
    assert "of 12 records kept" in shown.out and "caption_mix: neither caption scores enough" in shown.out
    assert "phase 1 of 2: caption, score" in shown.err and "phase 2 of 2: caption_mix" in shown.err
    result = json.loads(ran(capfd, *words, "--json").out)
    assert result["records"] == 12 and 0 < result["kept"] < 12
    assert len(open_source({"name": "generated", "path": f"{tmp_path}/out"}, split="train")) == result["kept"]
    assert "begun with stages.1.score" in ran(capfd, *words, "--config.stages.score.score=cos", status=2).err


def test_a_dry_run_does_nothing_and_prints_what_would_be_done(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = ran(capfd, "--config=nguyen", *SCENES, "--dry-run", "--config.stages.caption.n=2", "--limit=10").out
    assert "10 examples, 1 shard(s), 2 phase(s); at most 10 records, 20 requests" in shown
    assert "stage caption: 10 records, 10 to captioner" in shown and "model scorer: scenes: 10 requests" in shown
    forecast = json.loads(ran(capfd, "--config=nguyen", *SCENES, "--dry-run", "--json").out)
    assert forecast["requests"] == {"captioner": 12, "scorer": 12} and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=nguyen", "--output=x"], "no data: give"),
        (["--config=nguyen", *SCENES], "--output is missing: name a folder"),
        (["--config=nguyne", *SCENES, "--output=x"], "did you mean 'nguyen'"),
        (["--config=nguyen:backend=hff", *SCENES, "--output=x"], "did you mean 'hf'"),
        (["--config=nguyen", *SCENES, "--output=x", "--engine=locla"], "--engine='locla': no such name; did you mean"),
        (["--config=nguyen", *SCENES, "--output=x", "--split=train,test"], "--split=test: recipes make no data"),
        (["--config=nguyen", *SCENES, "--output=x", "--limit=0"], "--limit=0: must be at least 1"),
        (["--config=nguyen", *SCENES, "--output=x", "--config.stages.captoin.n=1"], "has no such entry"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capfd, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    shown = ran(capfd, *words, status=2)
    assert message in shown.err and not (tmp_path / "x").exists()
