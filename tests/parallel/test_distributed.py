"""Real processes: they agree, stop together, and none outlives another's failure."""

import signal
import socket
import time

import pytest

from support import processes

MINUTE = 60


def statuses(running):
    return [process.wait() for process in running]


def wait_for(process, word):
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(f"{word!r} was never said")


def test_they_meet_agree_and_leave_in_order():
    running = processes.start(
        """
with distributed.join():
    assert jax.process_count() == 2 and jax.process_index() == me
    print("first", collectives.is_main_process(), "sum", total(me + 1.0), "same", collectives.broadcast(10 + me))
    collectives.barrier("here")
    told = collectives.all_gather({"pi": (me, "ü" * 9 * me)})
    print("told", told == [{"pi": [0, ""]}, {"pi": [1, "ü" * 9]}], "sum", int(collectives.all_sum(5 + me)))
    time.sleep(1.0 * me)
print("left")
""",
        2,
    )
    said = processes.outputs(running)
    assert statuses(running) == [0, 0], said
    assert "first True sum 3.0 same 10" in said[0] and "first False sum 3.0 same 10" in said[1]
    assert all("told True sum 11" in text and "left" in text for text in said)


def test_sigterm_to_one_stops_all_after_the_same_step():
    running = processes.start(
        """
with distributed.join():
    for step in range(100_000):
        total(1.0)
        if step == 3: print("going", flush=True)
        if collectives.should_stop(step):
            print("stopped after", step, flush=True)
            break
""",
        2,
    )
    for process in running:
        wait_for(process, "going")
    running[1].send_signal(signal.SIGTERM)
    said = processes.outputs(running)
    assert statuses(running) == [0, 0], said
    steps = [text.split("stopped after ")[1].split()[0] for text in said]
    assert steps[0] == steps[1] and int(steps[0]) > 3


def test_an_error_in_one_is_said_and_ends_both():
    running = processes.start(
        """
with distributed.join():
    for step in range(100_000):
        total(1.0)
        if step == 3 and me == 1: raise ValueError("the picture is torn")
""",
        2,
    )
    started = time.monotonic()
    said = processes.outputs(running)
    assert time.monotonic() - started < MINUTE
    assert statuses(running)[1] == 1 and statuses(running)[0] != 0
    assert "ValueError: the picture is torn" in said[1] and "the picture is torn" not in said[0]


def test_a_setting_that_only_one_cannot_use_is_one_line_and_status_2():
    running = processes.start(
        """
with distributed.join():
    if me == 0: raise ConfigError("data.source=x: no such folder")
    collectives.barrier("opened")
""",
        2,
    )
    said = processes.outputs(running)
    assert running[0].returncode == 2 and running[1].returncode != 0
    assert "mmjax: data.source=x: no such folder\n" in said[0] and "Traceback" not in said[0]


@pytest.mark.slow  # waits for the heartbeat, half a minute each
@pytest.mark.parametrize("end", ["raise ConfigError('data.source=x: no such folder')", "os.kill(os.getpid(), 19)"])
def test_gone_before_they_met_or_frozen_it_ends_the_other_within_a_minute(end):
    running = processes.start(
        f"""
with distributed.join():
    jax.devices()
    print("going", flush=True)
    if me == 1: {end}
    collectives.barrier("opened")
""",
        2,
    )
    wait_for(running[1], "going")
    started = time.monotonic()
    running[0].communicate(timeout=2 * MINUTE)
    assert time.monotonic() - started < MINUTE
    assert running[0].returncode != 0
    running[1].kill()
    processes.outputs(running[1:])


def test_an_error_of_all_leaves_in_order_and_reaches_the_caller():
    running = processes.start(
        """
class Diverged(RuntimeError): pass
try:
    with distributed.join(shared_errors=(Diverged,)), distributed.fail_fast(shared_errors=(Diverged,)):
        time.sleep(1.0 * me)
        raise Diverged("no number")
except Diverged as error:
    print("caught", error)
    sys.exit(7)
""",
        2,
    )
    said = processes.outputs(running)
    assert statuses(running) == [7, 7], said
    assert all("caught no number" in text and "Traceback" not in text for text in said)


def test_kill_9_of_one_ends_the_other_within_a_minute():
    running = processes.start(
        """
with distributed.join():
    for step in range(100_000):
        total(1.0)
        if step == 3: print("going", flush=True)
""",
        2,
    )
    for process in running:
        wait_for(process, "going")
    running[1].kill()
    started = time.monotonic()
    processes.outputs(running)
    assert time.monotonic() - started < MINUTE
    assert running[0].returncode != 0


def test_a_taken_port_is_said_in_one_line():
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        running = processes.start(
            """
try:
    with distributed.join(): pass
except ConfigError as error:
    print("refused:", error)
""",
            2,
            port=port,
        )
        running[1].kill()  # it would wait for the first one
        said = processes.outputs(running)
    assert f"refused: MMJAX_COORDINATOR=127.0.0.1:{port}: cannot listen there" in said[0]


def test_one_process_joins_nobody_and_fails_as_ever():
    running = processes.start(
        """
try:
    with distributed.join(), distributed.fail_fast():
        assert not jax.distributed.is_initialized() and collectives.is_main_process()
        collectives.barrier("alone")
        assert collectives.broadcast(5) == 5 and not collectives.should_stop(1)
        raise ValueError("mine")
except ValueError as error:
    print("caught", error)
""",
        1,
    )
    said = processes.outputs(running)
    assert statuses(running) == [0] and "caught mine" in said[0], said
