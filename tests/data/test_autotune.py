import threading
import time

import numpy as np
import pytest

from mmjax.data import autotune
from mmjax.data.pipeline import Batches
from support.prepared import Source


class Fake:
    """Streams of known speed by a clock of their own; keeps count of what was opened and closed."""

    def __init__(self, speed):
        self.speed, self.now, self.opened, self.closed, self.steps = speed, 100.0, [], [], []

    def __copy__(self):
        return self

    def timer(self):
        return self.now

    def stream(self, *, start_step, workers, threads, prefetch):
        self.opened.append((workers, threads))
        self.steps.append(start_step)
        return FakeStream(self, (workers, threads))


class FakeStream:
    def __init__(self, owner, what):
        self.owner, self.what = owner, what

    def __next__(self):
        self.owner.now += 1 / self.owner.speed(*self.what)
        return {}

    def close(self):
        self.owner.closed.append(self.what)


def tuned(speed, *, cores=4):
    fake = Fake(speed)
    chosen = autotune.tune(fake, cores=cores, timer=fake.timer)
    assert fake.closed == fake.opened and len(set(fake.steps)) == len(fake.steps)
    # A slow start and one batch over the time are all that may be added.
    assert fake.now - 100 < len(fake.opened) * (2 * 2.0 + 0.2)
    return chosen, fake.opened


def test_each_candidate_and_the_choice_are_logged(messages):
    _, tried = tuned(lambda workers, threads: 100 * min(threads, 4))
    assert len(messages) == len(tried) + 1 and messages[-1] == "autotune: chose 4 threads"


def test_threads_that_scale_need_no_processes():
    chosen, tried = tuned(lambda workers, threads: 100 * min(threads, 4))
    assert chosen == (0, 4) and tried == [(0, 1), (0, 2), (0, 4), (0, 8)]


def test_more_threads_than_cores_where_reading_waits():
    chosen, _ = tuned(lambda workers, threads: 60 * threads)
    assert chosen == (0, 8)


def test_of_equally_good_ones_the_fewest():
    chosen, _ = tuned(lambda workers, threads: 100 if threads == 1 and not workers else 101)
    assert chosen == (0, 1)


def test_processes_where_threads_do_not_scale():
    chosen, tried = tuned(lambda workers, threads: 50 * max(workers, 1))
    assert chosen == (4, 1) and [w for w, _ in tried if w] == [1, 2, 4]


def test_processes_that_do_not_help_are_not_chosen():
    chosen, tried = tuned(lambda workers, threads: 100 if not workers else 40)
    assert chosen == (0, 1) and any(workers for workers, _ in tried)


def test_one_core():
    chosen, tried = tuned(lambda workers, threads: 100, cores=1)
    assert chosen == (0, 1) and tried == [(0, 1), (0, 2)]


def test_a_stream_that_fails_is_closed():
    fake = Fake(lambda workers, threads: 0)
    with pytest.raises(ZeroDivisionError):
        autotune.tune(fake, cores=2, timer=fake.timer)
    assert fake.closed == fake.opened == [(0, 1)]


def test_what_lies_ready_does_not_count():
    class Ready(FakeStream):
        """The first three batches come at once."""

        count = 0

        def __next__(self):
            self.count += 1
            self.owner.now += 0 if self.count <= 3 else 0.02

    fake = Fake(None)
    rate, count = autotune.measure_rate(Ready(fake, None), seconds=1, warmup=3, timer=fake.timer)
    assert rate == pytest.approx(50) and 50 <= count <= 51


def test_a_slow_stream_is_measured_by_one_batch():
    fake = Fake(lambda workers, threads: 0.1)
    rate, count = autotune.measure_rate(FakeStream(fake, (0, 1)), seconds=1, warmup=5, timer=fake.timer)
    assert (rate, count) == (pytest.approx(0.1), 1) and fake.now == pytest.approx(120)


def test_nothing_is_left_behind_of_real_batches():
    from mmjax.data.transform_chain import TransformChain

    chain = TransformChain((("resize_crop", {}),), image_size=16, modalities=("image",))
    batches = Batches(Source(32), lambda texts: np.zeros((len(texts), 4), np.int32), batch_size=8, seed=0, chain=chain)
    before = set(threading.enumerate())
    workers, threads = autotune.tune(batches, cores=1, seconds=0.05)
    assert workers == 0 and threads in (1, 2)
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)
