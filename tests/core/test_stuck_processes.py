"""Worker processes that are stuck, told apart from those that wait."""

import multiprocessing
import os
import signal
import time

from mmjax.core.stuck_processes import describe_stuck, stuck_workers


def stuck_in_the_end(wanted):
    """What is stuck once it is as wanted, or after ten seconds: workers that start also wait for the disk."""
    deadline = time.monotonic() + 10
    while (found := stuck_workers()) != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def test_a_stopped_worker_is_named_and_a_waiting_one_is_not():
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=time.sleep, args=(60,), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        pid = workers[1].pid
        os.kill(pid, signal.SIGSTOP)
        stopped = [f"worker process {pid} is stopped by a signal; `kill -CONT {pid}` lets it go on"]
        assert stuck_in_the_end(stopped) == stopped
        os.kill(pid, signal.SIGCONT)
        assert stuck_in_the_end([]) == []
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def test_a_process_that_is_not_there_is_not_described():
    assert describe_stuck(1 << 30) == "" and describe_stuck(os.getpid()) == ""
