"""The accounting of wall time, and the words about what lasts long."""

import contextlib
import random
import re
import threading
import time

import pytest

from mmjax.runs import timing
from mmjax.runs.timing import ACTIVITIES, WARN_AFTER_SECONDS, WARNINGS, ActivityTimer


class Hand:
    """A clock that the test sets."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def hand():
    return Hand()


def test_the_inner_activity_counts(hand):
    clock = ActivityTimer(now=hand)
    hand.now += 1
    with clock.measure("steps"):
        hand.now += 2
        with clock.measure("data"):
            hand.now += 4
            assert (clock.seconds("data"), clock.seconds("steps")) == (4, 2)
            with clock.measure("steps"):
                hand.now += 8
        hand.now += 16
        with clock.measure("checkpoint"):
            pass
    hand.now += 32
    assert {name: spent for name, spent in clock.totals().items() if spent} == {"other": 33, "steps": 26, "data": 4}


def test_an_error_ends_its_activity(hand):
    clock = ActivityTimer(now=hand)
    with contextlib.suppress(ValueError), clock.measure("evaluation"), clock.measure("restoring"):
        hand.now += 1
        raise ValueError
    hand.now += 5
    assert (clock.seconds("restoring"), clock.seconds("other")) == (1, 5)


@pytest.mark.parametrize("seed", range(5))
def test_every_second_is_that_of_exactly_one_activity(hand, seed):
    draw, clock, expected = random.Random(seed), ActivityTimer(now=hand), dict.fromkeys(ACTIVITIES, 0.0)

    def work(activity, depth):
        for _ in range(draw.randrange(4)):
            seconds = draw.random()
            hand.now += seconds
            expected[activity] += seconds
            if depth < 4 and draw.random() < 0.7:
                inner = draw.choice(ACTIVITIES)
                with clock.measure(inner):
                    work(inner, depth + 1)

    for _ in range(20):
        work("other", 0)
    assert clock.totals() == pytest.approx(expected)
    assert sum(clock.totals().values()) == pytest.approx(hand.now - 100.0)


def test_a_wait_behind_which_the_devices_were_at_work_cost_nothing(hand):
    clock = ActivityTimer(now=hand)
    with clock.measure("steps"):
        for busy in (True, False):
            with clock.measure("data", hidden=lambda busy=busy: busy):
                hand.now += 3
    assert (clock.seconds("data"), clock.seconds("steps")) == (3, 3)


def test_setting_the_machines_time_changes_nothing(monkeypatch):
    clock = ActivityTimer()
    monkeypatch.setattr(time, "time", lambda: -1e9)
    with clock.measure("data"):
        time.sleep(0.02)
    assert 0.02 <= clock.seconds("data") < 20


@pytest.mark.parametrize("activity", ["data", "checkpoint", "restoring"])
def test_a_long_stall_is_told_with_its_cause_while_it_lasts_and_ever_more_rarely(activity, messages):
    clock = ActivityTimer()
    with clock.watchdog(patience=0.005):
        with clock.measure(activity, "saving the checkpoint of step 500"):
            assert messages.arrived.wait(20)
            time.sleep(0.5)
            count = len(messages)
        time.sleep(0.1)
        assert len(messages) <= count + 1  # one may have been under way
    assert 1 <= count <= 6  # after 0.05, 0.1, 0.2, 0.4, … seconds
    causes = {"data": "mmjax data bench", "checkpoint": "step 500.*file system", "restoring": "step 500.*file system"}
    assert re.search(causes[activity], messages[0]), messages[0]


def test_what_is_short_or_known_to_take_long_is_not_told(messages):
    clock = ActivityTimer()
    with clock.watchdog(patience=0.05):
        for activity in ("compiling", "evaluation"):
            with clock.measure(activity):
                time.sleep(0.6)  # more than the patience with data
        for _ in range(30):
            with clock.measure("data"):
                time.sleep(0.01)
    assert messages == []
    assert WARN_AFTER_SECONDS["compiling"] >= 300 and WARN_AFTER_SECONDS["evaluation"] >= 300


def test_a_step_may_take_ten_times_the_longest_before_it(messages):
    clock = ActivityTimer()
    with clock.watchdog(patience=0.005), clock.measure("steps"):
        time.sleep(0.1)
        with clock.measure("other"):
            pass
        time.sleep(0.5)  # longer than the 0.3 s of the first, and five times as long as it was: no stall
        assert messages == []
        assert messages.arrived.wait(20)
    assert "a step has taken" in messages[0]


def test_the_watch_calls_the_tick_and_ends_with_its_block():
    ticks, clock = threading.Semaphore(0), ActivityTimer()
    before = threading.active_count()
    with pytest.raises(KeyError), clock.watchdog(tick=ticks.release, every=0.01, patience=0.01):
        assert ticks.acquire(timeout=20) and ticks.acquire(timeout=20)
        raise KeyError
    assert threading.active_count() == before


def test_every_activity_that_has_a_word_says_how_long():
    for activity, words in WARNINGS.items():
        assert activity in ACTIVITIES
        assert "12 s" in words.format(description="it", seconds=12.3)


def test_a_wait_for_data_names_the_worker_that_is_stuck(messages, monkeypatch):
    monkeypatch.setattr(timing, "stuck_workers", lambda: ["worker process 7 is stopped by a signal"])
    clock = ActivityTimer()
    with clock.watchdog(patience=0.005), clock.measure("data"):
        assert messages.arrived.wait(20)
    assert messages[0] == "waiting for data for 0 s; worker process 7 is stopped by a signal"
