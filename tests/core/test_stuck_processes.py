"""Worker processes that are stuck, told apart from those that wait."""

import multiprocessing
import os
import signal
import time

from mmjax.core.stuck_processes import describe_stuck, stuck_workers


def test_a_stopped_worker_is_named_and_a_waiting_one_is_not():
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=time.sleep, args=(60,), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        os.kill(workers[1].pid, signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while not stuck_workers() and time.monotonic() < deadline:
            time.sleep(0.01)
        pid = workers[1].pid
        assert stuck_workers() == [f"worker process {pid} is stopped by a signal; `kill -CONT {pid}` lets it go on"]
        os.kill(pid, signal.SIGCONT)
        while stuck_workers() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stuck_workers() == []
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def test_a_process_that_is_not_there_is_not_described():
    assert describe_stuck(1 << 30) == "" and describe_stuck(os.getpid()) == ""
