"""``launch/slurm.sbatch`` on a real Slurm of one node and two tasks."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import command, slurm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing() or "here")]

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as given:
        yield given


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def submit(cluster, compiled, tmp_path):
    command.config_file(tmp_path)
    given = command.environment(
        SLURM_CONF=cluster["SLURM_CONF"],
        PATH=cluster["PATH"],
        JAX_PLATFORMS="cpu",
        JAX_COMPILATION_CACHE_DIR=str(compiled),
        MMJAX=f"{sys.executable} -m mmjax",
    )

    def submit(*words):
        said = subprocess.run(
            [
                "sbatch", "--parsable", "--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1",
                "--time=30", f"--output={tmp_path}/job.out", f"--chdir={ROOT}", str(ROOT / "launch" / "slurm.sbatch"),
                "train", f"--config={tmp_path}/tiny.py", f"--workdir={tmp_path}/run", f"--config.steps={STEPS}",
                "--config.checkpoint.every_steps=4", "--config.eval.every_steps=20", *words,
            ],
            env=given, capture_output=True, text=True,
        )  # fmt: skip
        assert said.returncode == 0, said.stderr
        return said.stdout.strip()

    return submit


def run(cluster, *words):
    return subprocess.run(words, env=cluster, capture_output=True, text=True, check=True).stdout


def state(cluster, job):
    facts = dict(word.split("=", 1) for word in run(cluster, "scontrol", "show", "job", job).split() if "=" in word)
    return facts["JobState"], facts["ExitCode"]


def ended(cluster, job, output, *, seconds=400):
    deadline = time.monotonic() + seconds
    while state(cluster, job)[0] not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
        assert time.monotonic() < deadline, output.read_text() if output.exists() else "no output"
        time.sleep(0.5)
    return state(cluster, job)


def steps(folder):
    path = folder / "run" / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    found = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line["step"] for line in found if "train/loss" in line]


def starts(folder):
    return [json.loads(line) for line in (folder / "run" / "starts.jsonl").read_text().splitlines()]


def wait_for_step(folder, step):
    deadline = time.monotonic() + 300
    while not any(done >= step for done in steps(folder)):
        output = folder / "job.out"
        assert time.monotonic() < deadline, output.read_text() if output.exists() else "no output"
        time.sleep(0.1)


def test_two_tasks_train_are_stopped_requeued_and_finish(cluster, submit, tmp_path):
    job = submit()
    wait_for_step(tmp_path, 3)
    run(cluster, "scancel", "--batch", "--signal=TERM", job)  # what --signal=B:TERM@120 does when time is nearly up
    output = tmp_path / "job.out"
    deadline = time.monotonic() + 120
    while "back into the queue" not in output.read_text():
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.2)
    while state(cluster, job)[0] != "PENDING":
        assert time.monotonic() < deadline, state(cluster, job)
        time.sleep(0.2)
    time.sleep(5)  # a node takes a job that it has just given back for one that was cancelled; Slurm waits two minutes
    run(cluster, "scontrol", "update", f"JobId={job}", "StartTime=now")
    assert ended(cluster, job, output) == ("COMPLETED", "0:0"), output.read_text()
    said = output.read_text()
    assert "0: stopped by SIGTERM at step" in said and "0: going on from the checkpoint of step" in said
    assert steps(tmp_path) == list(range(1, STEPS + 1))
    assert [start["processes"] for start in starts(tmp_path)] == [2, 2]


def test_a_task_that_is_killed_ends_the_job_within_a_minute(cluster, submit, tmp_path):
    job = submit()
    wait_for_step(tmp_path, 3)
    tasks = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/environ")
        if f"SLURM_JOB_ID={job}".encode() in (variables := read(path)).split(b"\0")
        and b"SLURM_PROCID=1" in variables.split(b"\0")
        and b"mmjax" in read(path.with_name("cmdline"))
    ]
    assert tasks
    subprocess.run(["kill", "-KILL", str(min(tasks))], check=True)
    before = time.monotonic()
    result, _ = ended(cluster, job, tmp_path / "job.out")
    assert time.monotonic() - before < 60 and result == "FAILED"
    assert "same command again" in (tmp_path / "job.out").read_text()


def test_a_setting_that_cannot_be_used_fails_at_once(cluster, submit, tmp_path):
    job = submit("--config.optimizer.learning_rat=1")
    result, status = ended(cluster, job, tmp_path / "job.out")
    said = (tmp_path / "job.out").read_text()
    assert (result, status) == ("FAILED", "2:0"), said
    assert "learning_rat" in said and "Traceback" not in said


def read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it has ended meanwhile
