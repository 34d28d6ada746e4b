"""``launch/local.sh`` on a stand-in for mmjax: who is told what, and how they end."""

import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "local.sh"
STAND_IN = """#!/usr/bin/env bash
trap 'echo "asked to stop"; sleep "${SAVING:-0.3}"; echo saved; exit 0' TERM
device="${CUDA_VISIBLE_DEVICES:-none} ($JAX_PLATFORMS)"
echo "process $MMJAX_PROCESS of $MMJAX_PROCESSES at $MMJAX_COORDINATOR on $device"
echo "words: $*"
case "$1" in
  fine) exit 0 ;;
  breaks)
    if [[ $MMJAX_PROCESS == 1 ]]; then sleep 0.3; echo "the disk is full" >&2; exit 7; fi
    sleep 321 & echo "child $!"; wait ;;
  waits) sleep 321 & wait ;;
  looks) if [[ -t 1 ]]; then echo "a terminal"; else echo "no terminal"; fi; echo "a complaint" >&2 ;;
esac
"""


@pytest.fixture
def start(tmp_path):
    stand_in = tmp_path / "mmjax"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    started = []

    def start(*words, **environment):
        given = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "MMJAX")}
        given |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(temporary), **environment}
        # A shell that runs the tests in the background has them ignore Ctrl-C, and what is ignored cannot be trapped.
        command = ["env", "--default-signal=INT", SCRIPT, *words]
        process = subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        for _ in range(2):  # the second request ends all that the script has started; a kill would leave them behind
            if process.poll() is None:
                process.terminate()
                time.sleep(0.2)
        process.communicate(timeout=30)
    assert not list(temporary.iterdir())


def output(process):
    return process.communicate(timeout=60)[0]


def read_until(process, word, count):
    seen = ""
    while seen.count(word) < count:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    return seen


def alive(pid):
    return Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()


def test_each_is_told_which_it_is_and_is_heard_with_its_number(start):
    process = start("-n", "3", "-d", "cpu", "--", "fine", "--config=a b", "--workdir=c")
    said = output(process)
    assert process.returncode == 0
    found = re.findall(r"^\[(\d)\] process (\d) of (\d) at 127\.0\.0\.1:(\d+) on none \(cpu\)$", said, re.MULTILINE)
    assert sorted(found) == [(str(i), str(i), "3", found[0][3]) for i in range(3)]
    assert said.count("words: fine --config=a b --workdir=c") == 3


def test_each_gets_a_gpu_of_its_own(start):
    said = output(start("--", "fine", CUDA_VISIBLE_DEVICES="2,5"))
    assert re.search(r"process 0 of 2 .* on 2 \(\)", said) and re.search(r"process 1 of 2 .* on 5 \(\)", said)


def test_the_first_failure_ends_all_and_its_words_come_last(start):
    process = start("-n", "3", "-g", "1", "-d", "cpu", "--", "breaks")
    before = time.monotonic()
    said = output(process)
    assert process.returncode == 7 and time.monotonic() - before < 10
    summary = said.split("local.sh: process 1 of 3 failed first (status 7); its last lines:\n")[1]
    assert "[1] the disk is full\n" in summary and "[0]" not in summary and "same command again" in summary
    children = re.findall(r"child (\d+)", said)
    assert len(children) == 2 and not any(alive(child) for child in children)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_reaches_all_and_waits_for_them(start, number):
    process = start("-n", "2", "-d", "cpu", "--", "waits")
    said = read_until(process, "words", 2)
    process.send_signal(number)
    said += output(process)
    assert process.returncode == 0 and said.count("asked to stop") == 2 and said.count("saved") == 2


def test_a_second_request_means_now(start):
    process = start("-n", "2", "-d", "cpu", "--", "waits", SAVING="60")
    read_until(process, "words", 2)
    process.send_signal(signal.SIGTERM)
    read_until(process, "asked to stop", 2)
    process.send_signal(signal.SIGTERM)
    said = output(process)
    assert process.returncode == 128 + signal.SIGKILL and "saved" not in said and "(signal KILL)" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-n", "2"], "nothing to run"),
        (["-n", "two", "--", "fine"], "'two' is no whole number"),
        (["-n", "0", "--", "fine"], "must be at least 1"),
        (["-n"], "-n needs a value"),
        (["-x", "--", "fine"], "-x: no such flag"),
        (["-d", "tpu", "--", "fine"], "use cpu or gpu"),
        (["-n", "9", "-d", "gpu", "--", "fine"], "only 1 GPUs are here"),
    ],
)
def test_what_cannot_be_used_is_said(start, words, message):
    process = start(*words, CUDA_VISIBLE_DEVICES="0")
    said = output(process)
    assert process.returncode == 2 and message in said and "process 0" not in said


def test_on_a_terminal_the_first_keeps_it_for_its_live_line(tmp_path):
    (tmp_path / "mmjax").write_text(STAND_IN)
    (tmp_path / "mmjax").chmod(0o755)
    ours, its = pty.openpty()
    given = os.environ | {"MMJAX": str(tmp_path / "mmjax"), "TMPDIR": str(tmp_path)}
    subprocess.run([SCRIPT, "-n", "2", "-d", "cpu", "--", "looks"], env=given, stdout=its, stderr=its, check=True)
    wanted, said, deadline = {"a terminal", "[1] no terminal", "[0] a complaint", "[1] a complaint"}, "", 10
    while not wanted <= set(said.splitlines()) and select.select([ours], [], [], deadline)[0]:
        said += os.read(ours, 65536).decode().replace("\r\n", "\n")
    os.close(ours)
    os.close(its)
    assert wanted <= set(said.splitlines())


def test_a_missing_command_is_said(start):
    process = start("-n", "2", "-d", "cpu", "--", "fine", MMJAX="/nowhere/mmjax")
    assert "/nowhere/mmjax: not found" in output(process) and process.returncode == 2


def test_help_is_the_comment_on_top(start):
    process = start("-h")
    said = output(process)
    assert process.returncode == 0 and "launch/local.sh -n 4 -- train" in said and "set -" not in said
