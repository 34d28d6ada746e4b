"""Training in two and four processes: the same losses, one death stops all, and any number goes on from there."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import archives, command
from support.pictures import encoded, photograph
from support.speed_metrics import is_speed_metric

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "local.sh"
STEPS = 24
DEVICES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def words(folder, workdir):
    config = folder / "tiny.py"
    if not config.exists():
        command.config_file(folder)
    return (
        "train", f"--config={config}", f"--workdir={folder / workdir}", f"--config.steps={STEPS}",
        "--config.checkpoint.every_steps=4", "--config.eval.every_steps=8",
    )  # fmt: skip


def environment(folder, processes):
    return {
        "XLA_FLAGS": command.compiler_flags(DEVICES // processes),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "MMJAX": f"{sys.executable} -m mmjax",
    }


def start(folder, workdir, *, processes, run=None):
    return subprocess.Popen(
        [SCRIPT, "-n", str(processes), "-d", "cpu", "--", *(run or words(folder, workdir))],
        env=command.environment(**environment(folder, processes)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process):
    try:
        return process.communicate(timeout=400)[0]
    finally:
        process.terminate()  # twice means now, also for what it has started
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)


def lines(folder, workdir):
    path = folder / workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def wait_for_step(folder, workdir, step, process):
    while not any(line["step"] >= step for line in lines(folder, workdir)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def member(process, index):
    """The process id of the one that was told it is ``index``."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        if f"MMJAX_PROCESS={index}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"process {index} is not there")


def assert_same(folder, workdir):
    want, got = lines(folder, "one"), lines(folder, workdir)
    assert [line["step"] for line in got] == [line["step"] for line in want]
    for a, b in zip(want, got, strict=True):
        assert {name for name in a if not is_speed_metric(name)} == {name for name in b if not is_speed_metric(name)}
        # Ranks among thousands of near ties move with the last bit; losses and norms may not.
        for name in a:
            if name.startswith("train/") and not is_speed_metric(name):
                assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-5), (a["step"], name)


@pytest.fixture(scope="module")
def alone(folder):
    command.run(*words(folder, "one"), **environment(folder, 1))
    assert [line["step"] for line in lines(folder, "one") if "train/loss" in line] == list(range(1, STEPS + 1))
    return "one"


@pytest.mark.parametrize("processes", [2, 4])
def test_the_losses_are_those_of_one_process_with_as_many_devices(folder, alone, processes):
    process = start(folder, f"{processes}", processes=processes)
    said = ended(process)
    assert process.returncode == 0, said
    assert_same(folder, f"{processes}")
    assert said.count(f"{DEVICES} x cpu") == 1 and said.count("report:") == 1  # one speaks for all
    starts = [json.loads(line) for line in (folder / f"{processes}" / "starts.jsonl").read_text().splitlines()]
    assert [start["processes"] for start in starts] == [processes]


def test_a_checkpoint_measures_the_same_in_two_processes_and_one_says_so(folder, alone):
    run = ("eval", f"--workdir={folder / alone}", "--json", "--tasks=retrieval,zeroshot", "--split=val")
    wanted = json.loads(command.run(*run, **environment(folder, 1)))
    process = start(folder, alone, processes=2, run=run)
    said = ended(process)
    assert process.returncode == 0, said
    (line,) = [line for line in said.splitlines() if "val/rsum" in line]
    assert line.startswith("[0] ") and json.loads(line.removeprefix("[0] ")) == wanted
    # What a checkpoint holds is said with one device as with those that have saved it.
    shown = [json.loads(command.run("inspect", run[1], "--json", **environment(folder, n))) for n in (1, DEVICES)]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_all_stop_and_the_same_command_goes_on(folder, alone, victim):
    name = f"killed{victim}"
    process = start(folder, name, processes=2)
    wait_for_step(folder, name, 9, process)
    os.kill(member(process, victim), signal.SIGKILL)
    before = time.monotonic()
    said = ended(process)
    assert time.monotonic() - before < 60
    assert process.returncode == 128 + signal.SIGKILL
    assert f"process {victim} of 2 failed first (signal KILL)" in said
    process = start(folder, name, processes=2)
    said = ended(process)
    assert process.returncode == 0, said
    assert "going on from the checkpoint of step" in said
    assert_same(folder, name)


def test_sigterm_to_one_of_four_saves_all_and_two_go_on_with_the_same_batches(folder, alone):
    process = start(folder, "fewer", processes=4)
    wait_for_step(folder, "fewer", 9, process)
    os.kill(member(process, 2), signal.SIGTERM)
    said = ended(process)
    assert process.returncode == 0, said
    stopped = int(said.split("stopped by SIGTERM at step ")[1].split(",")[0])
    assert stopped < STEPS and str(stopped) in os.listdir(folder / "fewer" / "checkpoints")
    process = start(folder, "fewer", processes=2)
    said = ended(process)
    assert process.returncode == 0 and f"going on from the checkpoint of step {stopped}" in said, said
    assert_same(folder, "fewer")
    process = start(folder, "fewer", processes=2)
    said = ended(process)
    assert process.returncode == 0 and said.count("already finished") == 1


def test_the_status_of_a_stopped_run_can_say_so(folder, alone, monkeypatch):
    monkeypatch.setenv("MMJAX_STOPPED_STATUS", "75")
    process = start(folder, "status", processes=2)
    wait_for_step(folder, "status", 1, process)
    process.send_signal(signal.SIGTERM)
    said = ended(process)
    assert process.returncode == 75 and "same command again" in said


FROM_FILES = """
from support import tiny

def get_config(arg=""):
    return tiny.sections(
        steps=8, eval__final_splits=("val",), data__max_unreadable=float(arg or 1.0), data__transforms=(("flip", {}),),
        data__source={"name": "webdataset", "path": FOLDER + "/{split}/*.tar"}, data__train={},
    )
"""


def test_what_is_skipped_is_counted_over_all_processes(folder):
    pictures = [(f"{i:04d}", encoded(photograph(40, 48, seed=i)), [f"picture number {i}"]) for i in range(64)]
    broken = [(key, picture[:99] if key.endswith("3") else picture, texts) for key, picture, texts in pictures]
    archives.write_webdataset(folder / "train", broken, shards=2)
    archives.write_webdataset(folder / "val", broken[:20])
    (folder / "files.py").write_text(FROM_FILES.replace("FOLDER", repr(str(folder))))

    def run(workdir, limit=1.0):
        return "train", f"--config={folder / 'files.py'}:{limit}", f"--workdir={folder / workdir}"

    def skipped(workdir):
        return [
            line["train/unreadable_examples"] for line in lines(folder, workdir) if "train/unreadable_examples" in line
        ]

    command.run(*run("files-one"), **environment(folder, 1))
    process = start(folder, "", processes=2, run=run("files-two"))
    said = ended(process)
    assert process.returncode == 0, said
    assert skipped("files-two")[-1] == skipped("files-one")[-1] > 10
    counted = f"unreadable: {skipped('files-one')[-1]:.0f} truncated image"
    assert said.count(counted) == 1 and "[0] " in said.split(counted)[0].splitlines()[-1]
    assert [line["val/num_unreadable"] for line in lines(folder, "files-two") if "val/num_unreadable" in line][-1] == 2

    process = start(folder, "", processes=2, run=run("files-strict", limit=0.001))
    said = ended(process)
    assert process.returncode == 1 and "data.max_unreadable=0.001 allows" in said and "Traceback" not in said
