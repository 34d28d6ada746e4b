import itertools
import threading
import time
from contextlib import closing

import pytest

from mmjax.train.waiting import Waiting


def test_it_adds_up_the_time_of_next_and_nothing_else():
    def batches():
        for i in itertools.count():
            time.sleep(0.02)
            yield {"i": i}

    with closing(Waiting(batches())) as waiting:
        assert [next(waiting)["i"] for _ in range(3)] == [0, 1, 2]
        taken = waiting.seconds
        assert taken >= 0.06
        time.sleep(0.05)
        assert waiting.seconds == taken


def test_a_long_wait_is_told_while_it_lasts_and_ever_more_rarely():
    release, notes, told = threading.Event(), [], threading.Event()

    def note(text):
        notes.append(text)
        told.set()

    def batches():
        yield {}
        release.wait(20)
        yield {}

    with closing(Waiting(batches(), note=note, patience=0.05)) as waiting:
        next(waiting)
        assert notes == []
        thread = threading.Thread(target=lambda: next(waiting))
        thread.start()
        assert told.wait(10)
        time.sleep(0.5)
        count = len(notes)
        release.set()
        thread.join()
    assert "waiting for data" in notes[0] and "mmjax data bench" in notes[0]
    assert 1 <= count <= 6  # after 0.05, 0.1, 0.2, 0.4, … seconds


def test_errors_pass_through_and_closing_ends_the_thread():
    def batches():
        raise ValueError("broken")
        yield

    before = threading.active_count()
    waiting = Waiting(batches())
    with pytest.raises(ValueError, match="broken"):
        next(waiting)
    waiting.close()
    assert threading.active_count() == before
