"""Comparisons: the statistics against numbers worked out apart, the settings, the children, and whole ones."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mmjax import cli
from mmjax.commands import compare
from mmjax.commands.common import comparison, options, trainings
from mmjax.core.config import ConfigError
from mmjax.core.locks import find_owner
from mmjax.experiment import Experiment
from mmjax.runs import folder as run_folder
from support import command, tiny


def test_spread_against_a_worked_example():
    # Ten values with mean 5, sd 3.0277; t(0.975, 9) = 2.26216: half-width 2.26216 * 3.0277 / sqrt(10) = 2.1659.
    got = comparison.mean_interval(np.arange(10) + 0.5)
    assert got["mean"] == 5 and got["n"] == 10
    np.testing.assert_allclose([got["sd"], got["half_width"]], [3.02765, 2.16585], rtol=1e-5)
    assert np.isnan(comparison.mean_interval(np.array([1.0]))["half_width"])


def test_variants_from_words():
    made = comparison.make_variants(
        "configs/scenes.py:size=small", [("steps", "50")], augment=["none"], variants=["long:steps=60;seed=1"]
    )
    assert [v.name for v in made] == ["none", "long"]
    assert made[1].spec == "configs/scenes.py:size=small,augment=none"
    assert made[1].overrides == (("steps", "50"), ("steps", "60"), ("seed", "1"))
    for wrong in (["long"], ["long:"], ["long:steps"], ["none:steps=60"], ["../up:steps=60"], [":steps=60"]):
        with pytest.raises(ConfigError, match="--variant"):
            comparison.make_variants("configs/scenes.py", [], augment=["none"], variants=wrong)


@pytest.mark.parametrize(
    ("words", "mentions"),
    [
        (["--variant=wrong:stepz=60"], ["stepz", "steps"]),
        (["--metrics=val/rsum"], ["--metrics='val/rsum'", "test/rsum"]),
        (["--metrics=test/rsum,test/R@1"], ["--metrics='test/R@1'", "known"]),
        (["--metrics=test/rsum", "--variant=other:eval.final_splits=val"], ["--metrics='test/rsum'", "val/rsum"]),
        (["--first-seed=-1"], ["--first-seed=-1", "at least 0"]),
        (["--first-seed=4294967290"], ["seed=4294967297", "between"]),
        (["--jobs=0"], ["--jobs=0", "at least 1"]),
    ],
)
def test_a_mistake_is_found_before_anything_trains(words, mentions, tmp_path, capfd):
    config = f"--config={command.config_file(tmp_path)}"
    assert cli.main(["compare", config, f"--workdir={tmp_path / 'runs'}", *words]) == 2
    error = capfd.readouterr().err
    assert len(error.splitlines()) == 1 and all(mention in error for mention in mentions), error
    assert not (tmp_path / "runs").exists()


def test_json_has_null_where_there_is_no_number(capsys):
    rows = [{"variant": "a", "metric": "m", "values": [1.0]} | comparison.mean_interval(np.array([1.0]))]
    options.print_result(rows, compare.format_markdown, as_json=True)

    def refuse(word):
        raise AssertionError(word)

    (row,) = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert row["sd"] is None and row["half_width"] is None and row["mean"] == 1.0
    assert compare.format_markdown(rows).endswith("| a | m | 1 | 1 | baseline |")
    options.print_json({"a": (math.inf, {"b": math.nan})}, indent=None)
    assert capsys.readouterr().out == '{"a": [null, {"b": null}]}\n'


@pytest.fixture
def finished(tmp_path):
    """The folder of a comparison whose only run looks as training leaves it, and the words of its command."""
    folder = tmp_path / "runs" / "baseline" / "seed0"
    (folder / "checkpoints" / "2").mkdir(parents=True)
    experiment = tiny.experiment(eval__final_splits=("val", "test"), steps=2)
    text = dataclasses.replace(experiment.model.text_cfg, vocab_size=99, pad_id=0, eos_id=2)  # as of a tokenizer
    experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, text_cfg=text))
    (folder / "config.json").write_text(json.dumps(experiment.to_dict()))
    (folder / "report.html").write_text("")
    metrics = {"step": 2, "final/weights_of_step": 2.0, "val/rsum": 1.0, "test/rsum": 3.0, "test/modality_gap": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    words = [f"--config={command.config_file(tmp_path)}", f"--workdir={tmp_path / 'runs'}", "--seeds=1"]
    return folder, [*words, "--config.eval.final_splits=val,test", "--config.steps=2"]


def test_a_finished_run_is_read_and_not_started(finished, capfd, monkeypatch):
    _, words = finished
    monkeypatch.setattr(trainings.subprocess, "Popen", None)
    start = time.perf_counter()
    assert cli.main(["compare", *words, "--json"]) == 0
    assert time.perf_counter() - start < 1
    out, err = capfd.readouterr()
    rows = json.loads(out)  # and nothing else
    assert [row["metric"] for row in rows] == ["val/rsum", "test/rsum"] and rows[0]["n"] == 1
    assert err == "1 of 1 runs are finished already\n"


def test_a_finished_run_of_other_settings_is_refused(finished, capfd):
    folder, words = finished
    assert cli.main(["compare", *words, "--config.augment=(('mixup', {}),)"]) == 2
    error = capfd.readouterr().err
    assert str(folder) in error and "augment" in error and "another folder" in error


def test_what_is_in_the_way_is_said(finished, capfd):
    folder, words = finished
    experiment = Experiment.from_dict(run_folder.read_config(folder))
    with run_folder.claim(folder, experiment, overrides=[]):
        assert cli.main(["compare", *words]) == 2
        error = capfd.readouterr().err
        assert f"process {os.getpid()} on " in error and f"still trains {folder}" in error
        with pytest.raises(ConfigError, match=f"process {os.getpid()} on .* is training there"):
            run_folder.claim(folder, experiment, overrides=[]).__enter__()
    assert find_owner(folder / run_folder.LOCK) == ""


def is_alive(process):
    return Path(f"/proc/{process}/stat").exists() and " Z " not in Path(f"/proc/{process}/stat").read_text()


PARENTS = """
import os, signal, sys, time
from pathlib import Path
from mmjax.commands.common import trainings

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a suite in a shell's background ignores
trainings.sys.executable = sys.argv[1]  # in place of a training: any program that stops with its parent
with trainings.exit_on_sigterm():
    one = trainings.Training([], log=Path(sys.argv[2]), cores=set())
    try:
        print(one._process.pid, flush=True)
        time.sleep(60)
    finally:
        trainings.Training.stop([one])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGINT])
def test_trainings_end_with_the_command_however_that_ends(number, tmp_path):
    program = tmp_path / "python"
    code = "from mmjax.commands.common import trainings; trainings.stop_with_parent(); import time; time.sleep(60)"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}"\n')
    program.chmod(0o755)
    words = [sys.executable, "-c", PARENTS, str(program), str(tmp_path / "log")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        child = int(parent.stdout.readline())
        time.sleep(0.5)
        assert is_alive(child)
        os.kill(parent.pid, number)
        parent.wait(timeout=20)
    deadline = time.monotonic() + 20
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_log_keeps_what_earlier_starts_wrote_and_the_last_line_is_of_this_one(tmp_path, monkeypatch):
    log = tmp_path / "log"
    log.write_text("of an orphan\n")
    monkeypatch.setattr(trainings.sys, "executable", "/bin/true")
    training = trainings.Training([], log=log, cores=set())
    trainings.Training.stop([training])
    assert training.last_line() == "" and log.read_text() == "of an orphan\n"


@pytest.mark.slow
def test_paired_differences_of_a_whole_comparison(tmp_path):
    words = (
        "compare", f"--config={command.config_file(tmp_path)}", f"--workdir={tmp_path / 'runs'}", "--seeds=2",
        "--variant=slow:optimizer.learning_rate=1e-9", "--metrics=test/rsum", "--json",
    )  # fmt: skip
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    output = command.run(*words, **cache)
    rows = json.loads(output[output.index("[\n") :])
    base, slow = (np.array(row["values"]) for row in rows)
    np.testing.assert_allclose(rows[1]["difference"]["mean"], (slow - base).mean())
    assert "| slow | test/rsum | 2 |" in compare.format_markdown(rows)
    again = command.run(*words, **cache)  # finished runs stay
    assert json.loads(again[again.index("[\n") :]) == rows
