"""Comparisons: the statistics against numbers worked out apart, the settings, the children, and whole ones."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from mmjax import cli
from mmjax.commands.common import options, trainings
from mmjax.commands.comparing import runs as runs_module
from mmjax.commands.comparing.recipes import make_recipes
from mmjax.commands.comparing.runs import ComparedRun, list_runs, train_all
from mmjax.core.config import ConfigError
from mmjax.core.locks import find_owner
from mmjax.experiment import Experiment
from mmjax.runs import folder as run_folder
from support import command
from support.compared import recipe, write_run


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
        (["--recipes=none,lemdaa"], ["--recipes=lemdaa", "lemda"]),
        (["--recipes=none,cutswitch"], ["data.modalities", "cutswitch", "two or more"]),
        (["--fractions=0.5,2k"], ["--fractions=2000", "48 examples"]),
        (["--fractions=half"], ["--fractions=half", "fraction up to 1"]),
        (["--fractions=0.01"], ["--fractions", "leaves none of the 48"]),
        (["--detect=0"], ["--detect=0", "more than 0"]),
    ],
)
def test_a_mistake_is_found_before_anything_trains(words, mentions, tmp_path, capfd):
    config = f"--config={command.config_file(tmp_path)}"
    assert cli.main(["compare", config, f"--workdir={tmp_path / 'runs'}", *words]) == 2
    error = capfd.readouterr().err
    assert len(error.splitlines()) == 1 and all(mention in error for mention in mentions), error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [["--workdir=x"], ["--config=scenes"]])
def test_without_a_diff_config_and_workdir_are_needed(words, capfd):
    assert cli.main(["compare", *words]) == 2
    assert "--diff OLD NEW" in capfd.readouterr().err


def test_json_has_null_where_there_is_no_number(capsys):
    options.print_json({"a": (math.inf, {"b": math.nan})}, indent=None)
    assert capsys.readouterr().out == '{"a": [null, {"b": null}]}\n'


@pytest.fixture
def finished(tmp_path):
    """The folder of a comparison whose only run looks as training leaves it, and the words of its command."""
    own = (("eval.final_splits", "val,test"), ("steps", "2"))
    run = ComparedRun(recipe=recipe("none", str(command.config_file(tmp_path)), **dict(own)), seed=0)
    final = {"val/rsum": 1.0, "test/rsum": 3.0, "test/modality_gap": 0.5}
    folder = write_run(run, tmp_path / "runs", curve={}, final=final)
    overrides = [f"--config.{key}={value}" for key, value in own]
    words = [f"--config={run.recipe.spec}", f"--workdir={tmp_path / 'runs'}", "--seeds=1"]
    return folder, [*words, *overrides, "--time-steps=0", "--examples=0"]


def test_a_finished_run_is_read_and_not_started(finished, capfd, monkeypatch):
    _, words = finished
    monkeypatch.setattr(trainings.subprocess, "Popen", None)
    start = time.thread_time()  # a busy machine does not change it
    assert cli.main(["compare", *words, "--json"]) == 0
    assert time.thread_time() - start < 1
    out, err = capfd.readouterr()
    rows = json.loads(out)["rows"]  # and nothing else
    assert [row["metric"] for row in rows] == ["val/rsum", "test/rsum"] and rows[0]["n"] == 1
    assert rows[0]["sd"] is None and rows[0]["mean"] == 1.0
    folder = words[1].removeprefix("--workdir=")
    assert err == f"1 of 1 runs are finished already\nreport: {folder}/report.html\n"
    assert "| none | 1 | 1 | baseline |" in Path(folder, "report.md").read_text()
    assert cli.main(["compare", *words]) == 0  # from what it has written itself
    assert capfd.readouterr().out == Path(folder, "report.md").read_text()
    assert cli.main(["compare", "--diff", folder, folder]) == 0
    assert "| none | val/rsum | 1 | 1 | +0 |" in capfd.readouterr().out


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
    one = trainings.Training([], log=Path(sys.argv[2]), cores=set(), environ={})
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
    training = trainings.Training([], log=log, cores=set(), environ={})
    trainings.Training.stop([training])
    assert training.last_line() == "" and log.read_text() == "of an orphan\n"


def test_advice_of_a_training_is_that_of_this_start(tmp_path, monkeypatch):
    program, log = tmp_path / "python", tmp_path / "log"
    log.write_text("note: of an earlier start\n")
    program.write_text('#!/bin/sh\necho "mmjax"\necho "note: data.teacher: none"\necho "step 1  note: x"\n')
    program.chmod(0o755)
    monkeypatch.setattr(trainings.sys, "executable", str(program))
    training = trainings.Training([], log=log, cores=set(), environ={})
    training._process.wait(timeout=20)
    assert training.advice() == ["data.teacher: none"]


def test_a_training_sees_its_own_environment_beside_the_commands(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES $MINE"\n')
    program.chmod(0o755)
    monkeypatch.setattr(trainings.sys, "executable", str(program))
    monkeypatch.setenv("MINE", "stays")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    training = trainings.Training([], log=tmp_path / "log", cores=set(), environ={"CUDA_VISIBLE_DEVICES": "1"})
    training._process.wait(timeout=20)
    assert training.last_line() == "1 stays"


class Recorded(trainings.Training):
    """In place of a training: writes a finished run, or nothing for those in ``unfinished``."""

    started: ClassVar[list[str]] = []
    environs: ClassVar[list[dict[str, str]]] = []
    unfinished: ClassVar[set[str]] = set()
    said: ClassVar[dict[str, list[str]]] = {}

    def __init__(self, arguments, *, log, cores, environ):
        workdir = Path(next(a for a in arguments if a.startswith("--workdir=")).removeprefix("--workdir="))
        self.run, self.workdir = self.runs[workdir], workdir.parents[1]
        self.started.append(str(self.run))
        self.environs.append(environ)

    def poll(self):
        if str(self.run) in self.unfinished:
            raise KeyboardInterrupt
        write_run(self.run, self.workdir, curve={}, final={"test/rsum": 1.0})
        return 0

    def advice(self):
        return self.said.get(self.run.recipe.name, [])

    @staticmethod
    def stop(trainings):
        list(trainings)


def test_what_is_finished_when_a_comparison_is_stopped_never_trains_again(tmp_path, monkeypatch, caplog):
    spec = str(command.config_file(tmp_path))
    recipes = [recipe("none", spec), recipe("slow", spec, optimizer__learning_rate="1e-9")]
    runs = list_runs(recipes, seeds=range(3))
    assert [str(run) for run in runs[:3]] == ["none seed 0", "slow seed 0", "none seed 1"]  # whole pairs first
    Recorded.runs = {run.folder(tmp_path): run for run in runs}
    Recorded.started, Recorded.unfinished = [], {"none seed 1"}
    monkeypatch.setattr(runs_module, "Training", Recorded)
    with pytest.raises(KeyboardInterrupt):
        train_all(runs, jobs=1, workdir=tmp_path)
    assert Recorded.started == [str(run) for run in runs[:3]]
    Recorded.started, Recorded.unfinished = [], set()
    caplog.clear()
    with caplog.at_level("INFO"):
        train_all(runs, jobs=1, workdir=tmp_path)
    assert Recorded.started == [str(run) for run in runs[2:]]
    lines = [line.split("  ") for line in caplog.messages]
    started = f"training 4 runs, 1 at a time; each has its log beside its folder, as {tmp_path}/none/seed1.log"
    assert [line[0] for line in lines] == ["2 of 6 runs are finished already", started, "3/6", "4/6", "5/6", "6/6"]
    assert all(line[3].startswith("ETA ") for line in lines[2:-1]) and len(lines[-1]) == 3
    Recorded.started = []
    train_all(runs, jobs=1, workdir=tmp_path)
    assert Recorded.started == []


def test_what_runs_tell_their_user_to_change_is_said_once(tmp_path, monkeypatch, caplog):
    spec = str(command.config_file(tmp_path))
    runs = list_runs([recipe("none", spec), recipe("other", spec)], seeds=range(2))
    Recorded.runs, Recorded.unfinished = {run.folder(tmp_path): run for run in runs}, set()
    monkeypatch.setattr(Recorded, "said", {"none": ["of all"], "other": ["of all", "of it"]})
    monkeypatch.setattr(runs_module, "Training", Recorded)
    with caplog.at_level("INFO"):
        train_all(runs, jobs=1, workdir=tmp_path)
    said = [line for line in caplog.messages if line.startswith("recipe ")]
    assert said == ["recipe none: of all", "recipe other: of it"]


def test_runs_at_a_time_have_accelerators_of_their_own(tmp_path, monkeypatch):
    runs = list_runs([recipe("none", str(command.config_file(tmp_path)))], seeds=range(4))
    Recorded.runs = {run.folder(tmp_path): run for run in runs}
    Recorded.environs, Recorded.unfinished = [], set()
    monkeypatch.setattr(runs_module, "Training", Recorded)
    monkeypatch.setattr(runs_module.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(runs_module, "divide_accelerators", lambda jobs: [{"SLOT": str(i)} for i in range(jobs)])
    train_all(runs, jobs=2, workdir=tmp_path)
    assert Recorded.environs == [{"SLOT": "0"}, {"SLOT": "1"}] * 2


def test_ranks_are_those_of_the_first_seeds_and_not_made_again_for_further_ones(tmp_path, monkeypatch):
    spec, workdir = str(command.config_file(tmp_path)), tmp_path / "runs"
    for run in list_runs(make_recipes(spec, [], names=["none", "mixup"]), seeds=range(5)):
        write_run(run, workdir, curve={}, final={"test/rsum": float(run.seed)})
    ranked = []

    def find_changes(recipes, *, workdir, count):
        ranked.append({name: [run.seed for run in runs] for name, runs in recipes.items()})
        return {"split": "test", "images": 0, "seeds": [0, 1, 2], "entries": []}

    monkeypatch.setattr("mmjax.commands.comparing.rank_changes.find_changes", find_changes)
    words = ["compare", f"--config={spec}", f"--workdir={workdir}", "--recipes=none,mixup", "--time-steps=0"]
    for seeds in (4, 5):
        assert cli.main([*words, f"--seeds={seeds}"]) == 0
    assert ranked == [{"none": [0, 1, 2], "mixup": [0, 1, 2]}]


def test_one_recipe_alone_trains_with_a_warning_once(tmp_path, monkeypatch, caplog):
    alone = recipe("mixup", str(command.config_file(tmp_path)))
    runs = list_runs([alone], seeds=[0])
    Recorded.runs = {run.folder(tmp_path): run for run in runs}
    Recorded.started, Recorded.unfinished = [], set()
    monkeypatch.setattr(runs_module, "Training", Recorded)
    train_all(runs, jobs=1, workdir=tmp_path)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and "--recipes=none,mixup" in warnings[0]
    caplog.clear()
    train_all(runs, jobs=1, workdir=tmp_path)
    assert "WARNING" not in [record.levelname for record in caplog.records]


@pytest.mark.slow
def test_a_whole_comparison_is_killed_and_goes_on_without_repeating_a_run(tmp_path):
    workdir = tmp_path / "runs"
    words = (
        "compare", f"--config={command.config_file(tmp_path)}", f"--workdir={workdir}", "--seeds=2",
        "--recipes=none,mixgen", "--metrics=test/rsum", "--fractions=24", "--time-steps=2", "--examples=4", "--json",
    )  # fmt: skip
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    with command.start(*words, **cache) as process:
        while not list(workdir.rglob("report.html")):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.2)
        process.kill()
    finished = {path: path.stat().st_mtime_ns for path in workdir.rglob("seed*/report.html")}
    deadline = time.monotonic() + 60
    while any(find_owner(path) for path in workdir.rglob(run_folder.LOCK)):  # what it has started stops by itself
        assert time.monotonic() < deadline
        time.sleep(0.2)
    output = command.run(*words, **cache)
    results = json.loads(output[output.index("{\n") :])
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert [size["examples"] for size in results["sizes"]] == [24]
    base, own = (np.array(row["values"]) for row in results["rows"])
    np.testing.assert_allclose(results["rows"][1]["difference"]["mean"], np.mean(own - base), atol=1e-12)
    stored = json.loads((workdir / "comparison.json").read_text())
    assert [row["recipe"] for row in stored["step_times"]] == ["none", "mixgen"]
    assert stored["step_times"][0]["ratio"] == 1 and stored["step_times"][1]["seconds"] > 0
    entries = stored["rank_changes"]["entries"]
    assert 0 < len(entries) <= 4 and all(entry["image"][0].startswith("data:image/png") for entry in entries)
    again = command.run(*words, **cache)  # nothing is trained, timed or embedded again
    assert json.loads(again[again.index("{\n") :]) == results and "timing" not in again
    assert "4 of 4 runs are finished already" in again
