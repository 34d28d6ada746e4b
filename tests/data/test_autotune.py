import threading
import time

import numpy as np
import pytest

from mmjax.data import autotune
from mmjax.data.pipeline import Batches
from support.prepared import Source


class Fake:
    """Streams of known speed; keeps count of what was opened and closed."""

    def __init__(self, speed):
        self.speed, self.opened, self.closed = speed, [], []

    def __copy__(self):
        return self

    def stream(self, *, start_step, workers, threads, prefetch):
        self.opened.append((workers, threads))
        self.steps = [*getattr(self, "steps", []), start_step]
        return FakeStream(self, (workers, threads), 1 / self.speed(workers, threads))


class FakeStream:
    def __init__(self, owner, what, seconds):
        self.owner, self.what, self.seconds = owner, what, seconds

    def __next__(self):
        time.sleep(self.seconds)
        return {}

    def close(self):
        self.owner.closed.append(self.what)


def tuned(speed, *, cores=4):
    fake, notes = Fake(speed), []
    chosen = autotune.tune(fake, cores=cores, seconds=0.06, note=notes.append)
    assert fake.closed == fake.opened and len(set(fake.steps)) == len(fake.steps)
    assert len(notes) == len(fake.opened) + 1
    return chosen, fake.opened


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
    class Failing(Fake):
        def stream(self, **options):
            stream = super().stream(**options)
            stream.seconds = -1  # what sleep refuses
            return stream

    fake = Failing(lambda workers, threads: 1)
    with pytest.raises(ValueError):
        autotune.tune(fake, cores=2, seconds=0.01, note=lambda text: None)
    assert fake.closed == fake.opened == [(0, 1)]


def test_what_lies_ready_does_not_count():
    class Ready(FakeStream):
        """The first three batches come at once."""

        count = 0

        def __next__(self):
            self.count += 1
            time.sleep(0 if self.count <= 3 else 0.02)

    rate, count = autotune.rate(Ready(Fake(None), None, 0), seconds=0.1, warm=3)
    assert rate == pytest.approx(50, rel=0.3) and count >= 4


def test_nothing_is_left_behind_of_real_batches():
    from mmjax.data.chain import Chain

    chain = Chain((("resize_crop", {}),), image_size=16, modalities=("image",))
    batches = Batches(Source(32), lambda texts: np.zeros((len(texts), 4), np.int32), batch_size=8, seed=0, chain=chain)
    before = set(threading.enumerate())
    workers, threads = autotune.tune(batches, cores=1, seconds=0.05, note=lambda text: None)
    assert workers == 0 and threads in (1, 2)
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)
