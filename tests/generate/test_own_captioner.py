"""Recipes whose captioner was trained here, from its training to that of the student, without a network or torch."""

import json

import pytest

from mmjax import cli
from mmjax.data.open_source import open_source
from mmjax.evals.captioning import judge

TINY = ["--config.data.evaluation={'size': 64}", "--config.checkpoint.every_steps=1000"]


def run(*words):
    assert cli.main([str(word) for word in words]) == 0


def final(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {name: value for line in lines for name, value in line.items() if name.startswith(("val/", "test/"))}


@pytest.mark.slow
def test_nguyen_and_seltda_run_from_their_captioner_to_their_student(tmp_path):
    decoder, own = "scenes_decoder:world=easy,images=1024", "--config.data.source.seed=1"
    run("train", f"--config={decoder},steps=80", f"--workdir={tmp_path / 'captioner'}", own, *TINY)
    told_apart = final(tmp_path / "captioner")
    accuracy = [told_apart[f"test/captioning/attribute_accuracy{end}"] for end in ("", "_other_image")]
    assert accuracy[0] > accuracy[1] > 0.1

    world = ("--input=scenes", "--option", "world=easy", "--limit=96")
    run(
        "generate", f"--config=nguyen:backend=mmjax,run={tmp_path / 'captioner'}", *world, "--option",
        "caption_noise=0.6", f"--output={tmp_path / 'nguyen'}",
    )  # fmt: skip
    source = open_source({"name": "generated", "path": str(tmp_path / "nguyen")}, split="train")
    sources = [caption["source"] for row in range(len(source)) for caption in source.record(row).captions]
    assert len(source) > 20 and {"raw", "caption"} == set(sources)
    data = {"name": "generated", "path": str(tmp_path / "nguyen")}
    run(
        "train", "--config=scenes:world=easy", "--config.steps=2", "--config.batch_size=16",
        f"--config.data.train={data}", "--config.eval.tasks=('retrieval',)", "--config.eval.final_tasks=('retrieval',)",
        "--config.checkpoint.best=None", "--config.eval.weights=last", f"--workdir={tmp_path / 'student'}", *TINY,
    )  # fmt: skip
    assert final(tmp_path / "student")["test/rsum"] > 0

    run("train", f"--config={decoder},texts=questions,steps=200", f"--workdir={tmp_path / 'teacher'}", own, *TINY)
    run(
        "generate", f"--config=seltda:backend=mmjax,run={tmp_path / 'teacher'},filtered=0", *world,
        f"--output={tmp_path / 'seltda'}",
    )  # fmt: skip
    data = {"name": "generated", "path": str(tmp_path / "seltda"), "questions": True}
    asked = list(open_source(data, split="train"))
    records = open_source({"name": "generated", "path": str(tmp_path / "seltda")}, split="train")
    assert len(asked) > 20 and len({example["answer"] for example in asked}) > 4
    scenes = [records.record(example["id"]).fields["scene"] for example in asked]
    texts = [f"{example['captions'][0]} {example['answer']}" for example in asked]
    truth = judge(texts, scenes)
    assert truth["attribute_accuracy"] > 0.1
    mixed = {"name": "mix", "sources": [{"name": "scenes", "world": "easy", "task": "questions", "size": 64}, data]}
    run(
        "train", "--config=scenes_vqa:world=easy", "--config.steps=2", "--config.batch_size=16",
        f"--config.data.train={mixed}", "--config.data.tokenizer.clean=canonicalize",
        f"--workdir={tmp_path / 'answers'}", *TINY,
    )  # fmt: skip
    assert final(tmp_path / "answers")["test/vqa/accuracy"] > 0
