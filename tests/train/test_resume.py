"""Stopping and going on: killed, asked to stop, or finished, a run ends with the same bits."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from mmjax import cli
from support import command
from support.speed_metrics import is_speed_metric

STEPS = 24
IMPORTED = "imported.txt"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled"))}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return command.config_file(tmp_path_factory.mktemp("config"))


def arguments(config, workdir):
    return (
        "train", f"--config={config}", f"--workdir={workdir}", f"--config.steps={STEPS}",
        "--config.checkpoint.every_steps=4", "--config.eval.every_steps=8", "--config.optimizer.ema_decay=0.9",
        "--config.optimizer.mu_dtype=bfloat16",
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(config, environment, tmp_path_factory):
    """A run that ended; beside its folder lies the list of what it had imported by then."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    code = (
        "import pathlib, sys; from mmjax import cli; status = cli.main(sys.argv[2:]);"
        "pathlib.Path(sys.argv[1]).write_text(' '.join(sys.modules)); sys.exit(status)"
    )
    words = [sys.executable, "-c", code, str(workdir.parent / IMPORTED), *arguments(config, workdir)]
    done = subprocess.run(words, env=command.environment(**environment), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return workdir


@pytest.mark.slow
def test_training_imports_neither_tensorflow_nor_torch(undisturbed):
    imported = set((undisturbed.parent / IMPORTED).read_text().split())
    assert "jax" in imported and not imported & {"tensorflow", "torch", "transformers"}


def fingerprint(workdir, environment):
    return json.loads(command.run("inspect", f"--workdir={workdir}", "--json", **environment))


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def wait_for_step(workdir, step, process):
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        path = workdir / "metrics.jsonl"
        if path.exists() and any(f'{{"step": {s},' in path.read_text() for s in range(step, STEPS + 1)):
            return
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_bits(config, environment, undisturbed, tmp_path):
    workdir = tmp_path / "killed"
    moments = random.Random(time.time_ns())
    for earliest in (2, 9, 16):
        process = command.start(*arguments(config, workdir), **environment)
        wait_for_step(workdir, earliest, process)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate()
    output = command.run(*arguments(config, workdir), **environment)
    assert "going on from the checkpoint" in output or "already finished" in output
    if "already finished" not in output:
        assert "4 starts" in output and "goodput" in output and "between starts" in output
    want, got = fingerprint(undisturbed, environment), fingerprint(workdir, environment)
    assert (got["step"], got["sha256"]) == (STEPS, want["sha256"])
    untimed = lambda lines: [  # noqa: E731
        {k: v for k, v in line.items() if not is_speed_metric(k)} for line in lines
    ]
    assert untimed(metrics(workdir)) == untimed(metrics(undisturbed))


@pytest.mark.slow
def test_sigterm_saves_says_how_to_go_on_and_exits_with_0(config, environment, undisturbed, tmp_path):
    workdir = tmp_path / "terminated"
    process = command.start(*arguments(config, workdir), **environment)
    wait_for_step(workdir, 5, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    last = output.strip().splitlines()[-1]
    assert "SIGTERM" in last and "same command" in last
    stopped = fingerprint(workdir, environment)["step"]
    assert 5 <= stopped < STEPS and f"step {stopped}" in last
    command.run(*arguments(config, workdir), **environment)
    assert fingerprint(workdir, environment)["sha256"] == fingerprint(undisturbed, environment)["sha256"]


@pytest.mark.slow
def test_a_profile_changes_no_bit(config, environment, undisturbed, tmp_path):
    workdir = tmp_path / "profiled"
    # Step 8 is evaluated and saved: another program runs amid the traced steps.
    output = command.run(*arguments(config, workdir), "--profile=steps:6-9", **environment)
    summary = (workdir / "profile" / "steps-6-9" / "summary.txt").read_text()
    assert "(4 steps)" in summary and "matrix products" in summary and "other programs" in summary
    assert "in between      " in summary and "evaluation" in summary
    assert "a step took" in output and "summary.txt" in output
    assert fingerprint(workdir, environment)["sha256"] == fingerprint(undisturbed, environment)["sha256"]


@pytest.mark.slow
def test_a_run_says_where_its_time_went(undisturbed):
    lines = metrics(undisturbed)
    assert lines[0]["train/compile_seconds"] > 0
    trained = [line for line in lines if "train/loss" in line][-1]
    assert trained["train/examples_per_second"] > 0 and trained["train/flops_per_second_per_device"] > 0
    assert "train/mfu" not in trained  # a CPU has no published peak
    assert any("train/checkpoint_seconds" in line for line in lines)
    assert any("train/checkpoint_disk_seconds" in line for line in lines)
    times = {key.removeprefix("goodput/"): value for key, value in lines[-1].items() if is_speed_metric(key)}
    parts = ("steps", "data", "compiling", "evaluation", "neighbors", "checkpoint", "restoring", "lost", "other")
    assert sum(times[f"{part}_seconds"] for part in parts) == pytest.approx(times["total_seconds"], abs=1e-6)
    assert 0 < times["goodput"] < 1 and times["lost_seconds"] == 0 and times["starts"] == 1
    assert all(times[f"{part}_seconds"] > 0 for part in ("steps", "compiling", "evaluation", "checkpoint", "other"))
    assert "Where the time went" in (undisturbed / "report.html").read_text()


@pytest.mark.slow
def test_a_finished_run_stays_as_it_is(config, undisturbed, capsys):
    before = {path: path.read_bytes() for path in (undisturbed / "metrics.jsonl", undisturbed / "report.html")}
    assert cli.main([*arguments(config, undisturbed), "--profile=steps:6-9"]) == 0
    output = capsys.readouterr().out
    assert "already finished" in output and "nothing was left to profile" in output
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_another_experiment_is_refused_with_the_difference(config, undisturbed, capsys):
    assert cli.main([*arguments(config, undisturbed), "--config.optimizer.learning_rate=0.5"]) == 2
    assert "optimizer.learning_rate: 0.01 there, 0.5 now" in capsys.readouterr().err


@pytest.mark.slow
def test_the_folder_holds_what_a_reader_needs(undisturbed):
    config = json.loads((undisturbed / "config.json").read_text())
    assert config["steps"] == STEPS and config["model"]["text_cfg"]["vocab_size"] > 10
    start = json.loads((undisturbed / "starts.jsonl").read_text().splitlines()[0])
    assert start["versions"]["jax"] and f"steps={STEPS}" in start["overrides"]
    last = metrics(undisturbed)[-1]
    assert 0 <= last["test/rsum"] <= 600 and last["final/weights_of_step"] == STEPS
    logged = [line["step"] for line in metrics(undisturbed) if "train/loss" in line]
    assert logged == list(range(1, STEPS + 1))
    assert {line["step"] for line in metrics(undisturbed) if "val/rsum" in line} == {8, 16, 24}
    assert list((undisturbed / "tensorboard").iterdir())
    report = (undisturbed / "report.html").read_text()
    assert (
        "data:image/png;base64" in report
        and "<svg" in report
        and "http" not in report.replace("http://www.w3", "").replace("http-equiv", "")
    )


@pytest.mark.slow
def test_eval_repeats_the_final_measurement(environment, undisturbed):
    # In a process like the run's: eight devices sum in another order, and a rank may change between near ties.
    output = command.run("eval", f"--workdir={undisturbed}", "--tasks=retrieval", "--json", **environment)
    again, last = json.loads(output.splitlines()[-1]), metrics(undisturbed)[-1]
    measured = {name: value for name, value in last.items() if name.startswith("test/")}
    assert measured and again == measured
