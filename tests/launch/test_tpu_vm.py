"""``launch/tpu_vm.sh`` with a stand-in for gcloud: a slice that is preempted comes back, one that fails does not."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "tpu_vm.sh"
# Keeps the slice's state in a file, and runs what it is to run on "all workers" here.
GCLOUD = """#!/usr/bin/env bash
echo "$*" >> "$FOLDER/calls"
case "$4" in
  describe) [[ -s "$FOLDER/state" ]] && cat "$FOLDER/state" || exit 1 ;;
  delete) : > "$FOLDER/state" ;;
  ssh) for word in "$@"; do [[ $word != --command=* ]] || exec bash -c "${word#--command=}"; done ;;
esac
"""
MMJAX = """#!/usr/bin/env bash
echo "start: $* stopped=$MMJAX_STOPPED_STATUS" >> "$FOLDER/starts"
trap 'echo asked >> "$FOLDER/starts"; exit "$MMJAX_STOPPED_STATUS"' TERM
count=$(grep -c start "$FOLDER/starts")
case "$KIND" in
  fine) exit 0 ;;
  breaks) echo "loss is NaN"; exit 1 ;;
  preempted) ((count > 1)) || { echo PREEMPTED > "$FOLDER/state"; exit 75; } ;;
  waits) sleep 20 >/dev/null 2>&1 & wait ;;
esac
"""


@pytest.fixture
def start(tmp_path):
    for name, text in (("gcloud", GCLOUD), ("mmjax", MMJAX)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "state").write_text("READY")

    def start(kind, *words, **environment):
        given = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "FOLDER": str(tmp_path), "KIND": kind, "TPU": "slice",
            "ZONE": "zone", "MMJAX": str(tmp_path / "mmjax"), "SETUP": "echo set up >> $FOLDER/starts", "POLL": "0",
            **environment,
        }  # fmt: skip
        return subprocess.Popen(
            [SCRIPT, *words], env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start


def test_all_workers_get_the_words_as_they_were_given(start, tmp_path):
    process = start("fine", "train", "--config=a b.py", "--workdir=x")
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    starts = (tmp_path / "starts").read_text().splitlines()
    assert starts == ["set up", "start: train --config=a b.py --workdir=x stopped=75"]
    assert (
        "--worker=all" in (tmp_path / "calls").read_text() and "slice --zone=zone" in (tmp_path / "calls").read_text()
    )


def test_a_preempted_slice_is_made_again_and_the_run_goes_on(start, tmp_path):
    process = start("preempted", "train", CREATE='echo made >> "$FOLDER/starts"; echo READY > "$FOLDER/state"')
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "preempted; attempt 2" in said
    starts = [line.split(":")[0] for line in (tmp_path / "starts").read_text().splitlines()]
    assert starts == ["set up", "start", "made", "set up", "start"]


def test_without_a_way_to_make_it_again_it_says_so(start):
    process = start("preempted", "train")
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2 and "set CREATE" in said


def test_a_failure_on_a_slice_that_is_well_is_not_repeated(start, tmp_path):
    process = start("breaks", "train")
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "loss is NaN" in said and "the slice is well" in said
    assert (tmp_path / "starts").read_text().count("start:") == 1


def test_a_request_to_stop_reaches_the_workers_and_is_not_taken_for_a_preemption(start, tmp_path):
    process = start("waits", "train")
    while "start" not in ((tmp_path / "starts").read_text() if (tmp_path / "starts").exists() else ""):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 75 and "asks all workers" in said
    assert (tmp_path / "starts").read_text().splitlines()[-1] == "asked"


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        ([], {}, "nothing to run"),
        (["train"], {"TPU": ""}, "TPU is not set"),
        (["train"], {"ZONE": ""}, "ZONE is not set"),
        (["train"], {"ATTEMPTS": "0"}, "ATTEMPTS=0"),
        (["train"], {"SETUP": "exit 3"}, "SETUP failed"),
    ],
)
def test_what_cannot_be_used_is_said(start, tmp_path, words, environment, message):
    process = start("fine", *words, **environment)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2 and message in said and not (tmp_path / "starts").exists()
