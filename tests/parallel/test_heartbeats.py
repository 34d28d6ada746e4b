"""A process that gives no sign of life is named by the others, and no other one is."""

import platform
import signal
import time

import pytest

from mmjax.parallel.heartbeats import SILENT_SECONDS, Heartbeats
from support import processes


class Run:
    """Processes that share a dictionary of beats and a clock."""

    def __init__(self, count):
        self.time, self.keys = 0.0, {}
        self.beats = [
            Heartbeats(
                process,
                post=lambda text, process=process: self.keys.update({process: text}),
                read=lambda: dict(self.keys),
                main=lambda: self.keys.get(0, "1 9 elsewhere"),
                now=lambda: self.time,
            )
            for process in range(count)
        ]

    def pass_seconds(self, seconds, *, stopped=()):
        for _ in range(int(seconds)):
            self.time += 1
            if 0 in stopped:  # nobody is answered
                others = []
            else:
                others = [beats for process, beats in enumerate(self.beats) if process not in stopped]
            for beats in others:
                beats.beat()
            for process, beats in enumerate(self.beats):
                if process not in stopped:
                    beats.check()


def test_the_stopped_one_is_named_once_and_so_is_its_return(messages):
    run = Run(3)
    run.pass_seconds(60)
    assert messages == []
    run.pass_seconds(SILENT_SECONDS - 1, stopped=[2])
    assert messages == []
    run.pass_seconds(30, stopped=[2])
    assert len(messages) == 1 and messages[0].startswith("process 2 (PID ") and f"on {platform.node()})" in messages[0]
    run.pass_seconds(5)
    assert messages[1:] == ["process 2 gives signs of life again"]


def test_the_main_process_is_named_by_all_others(messages):
    run = Run(3)
    run.pass_seconds(5)
    run.pass_seconds(30, stopped=[0])
    assert len(messages) == 2 and all(line.startswith("process 0 (PID ") for line in messages)


def test_one_that_has_left_in_order_or_slept_itself_blames_nobody_and_is_not_blamed(messages):
    run = Run(2)
    run.pass_seconds(5)
    del run.keys[1]
    run.pass_seconds(1, stopped=[1])
    run.pass_seconds(30, stopped=[1])
    run.time += 100  # process 0 is stopped and goes on
    run.beats[0].forgive()
    run.beats[0].check()
    assert messages == []


def test_a_process_ends_well_if_the_main_one_never_had_time_for_a_beat():
    running = processes.start(
        """
from mmjax.parallel import heartbeats
heartbeats.BEAT_SECONDS = 0.1 if me else 100.0
with distributed.join():
    time.sleep(1.0)
print("left")
""",
        2,
    )
    said = processes.outputs(running)
    assert [process.returncode for process in running] == [0, 0] and all("left" in text for text in said), said


PROGRAM = """
import logging
from mmjax.parallel import heartbeats
logging.basicConfig(format="%(message)s", stream=sys.stdout)
heartbeats.BEAT_SECONDS, heartbeats.SILENT_SECONDS = 0.1, 1.0
with distributed.join():
    print("ready", total(1.0), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_process_is_named_with_its_state(stopped):
    running = processes.start(PROGRAM, 2)
    try:
        for process in running:
            while "ready" not in (line := process.stdout.readline()):
                assert line
        time.sleep(0.5)
        running[stopped].send_signal(signal.SIGSTOP)
        pid = running[stopped].pid
        line = running[1 - stopped].stdout.readline()
        assert line.startswith(f"process {stopped} (PID {pid} on {platform.node()}) has given no sign of life for")
        assert f"it is stopped by a signal; `kill -CONT {pid}` lets it go on" in line
        running[stopped].send_signal(signal.SIGCONT)
        assert running[stopped].stdout.readline().startswith("this process was stopped for ")
    finally:
        for process in running:
            process.kill()
            process.wait()
            process.stdout.close()
