"""Goodput: what the starts of a run leave in its folder, and what it adds up to."""

import json
import math
import os
import random

import pytest

from mmjax.report import tables
from mmjax.runs import goodput
from mmjax.runs.timing import ActivityTimer


class Hand:
    now = 0.0

    def __call__(self):
        return self.now


class Start:
    """A start of a run whose steps, saves and clocks the test makes."""

    def __init__(self, workdir, monkeypatch=None, *, at=1000.0, begin=0, setup=5.0):
        self.hand = Hand()
        self.clock = ActivityTimer(now=self.hand)
        self.hand.now += setup
        if monkeypatch is not None:
            monkeypatch.setattr(goodput.time, "time", lambda: at + self.hand.now)
        self.ledger = goodput.TimeLog(workdir, self.clock)
        self.ledger.start_segment(begin)

    def steps(self, first, last, seconds=1.0):
        with self.clock.measure("steps"):
            for step in range(first, last + 1):
                self.hand.now += seconds
                self.ledger.set_step(step)

    def spend(self, activity, seconds):
        with self.clock.measure(activity):
            self.hand.now += seconds


def lines(workdir):
    return (workdir / goodput.FILE).read_text(errors="replace").splitlines()


def test_an_undisturbed_run(tmp_path):
    start = Start(tmp_path)
    start.spend("compiling", 3)
    start.steps(1, 10)
    start.spend("evaluation", 2)
    start.ledger.close()
    found = goodput.load_goodput(tmp_path)
    spent = {"steps": 10, "compiling": 3, "evaluation": 2, "other": 5}
    assert found.seconds == pytest.approx(dict.fromkeys(goodput.LABELS, 0.0) | spent)
    assert (found.starts, found.total, found.fraction, found.between) == (1, 20, 0.5, 0)
    assert found.metrics()["goodput"] == 0.5 and found.metrics()["goodput/lost_seconds"] == 0
    table = found.table()
    assert table.startswith("goodput 50.0%") and "10.0s" in table and "between" not in table and "lost" not in table


def test_steps_done_again_after_a_kill_are_lost(tmp_path, monkeypatch):
    first = Start(tmp_path, monkeypatch)
    first.steps(1, 6)
    first.ledger.write()  # the checkpoint of step 6
    first.steps(7, 9, seconds=2.0)
    first.ledger.write()
    first.steps(10, 12)  # killed: nothing is known of these
    second = Start(tmp_path, monkeypatch, at=1100.0, begin=6, setup=4.0)
    second.spend("restoring", 1)
    second.steps(7, 20)
    second.ledger.close()
    found = goodput.load_goodput(tmp_path)
    assert found.seconds["steps"] == pytest.approx(6 + 14) and found.seconds["lost"] == pytest.approx(6)
    assert found.total == pytest.approx(5 + 6 + 6 + 4 + 1 + 14) and found.starts == 2
    assert found.between == pytest.approx(100 - 17)  # from the last line of the first on
    assert "2 starts" in found.table() and "lost" in found.table() and "1m23s" in found.table()


def test_a_checkpoint_between_two_lines_splits_their_time(tmp_path):
    first = Start(tmp_path)
    first.steps(1, 10)
    first.ledger.close()
    second = Start(tmp_path, begin=4)
    second.steps(5, 10)
    second.ledger.close()
    found = goodput.load_goodput(tmp_path)
    assert (found.seconds["steps"], found.seconds["lost"]) == (pytest.approx(4 + 6), pytest.approx(6))


def test_going_back_within_a_start_loses_likewise(tmp_path):
    start = Start(tmp_path)
    start.steps(1, 8)
    start.ledger.write()
    start.steps(9, 10)
    start.ledger.start_segment(4)
    start.steps(5, 10)
    start.ledger.close()
    found = goodput.load_goodput(tmp_path)
    assert (found.seconds["steps"], found.seconds["lost"]) == (pytest.approx(4 + 6), pytest.approx(4 + 2))
    assert found.starts == 1


@pytest.mark.parametrize("seed", range(8))
def test_random_kills_agree_with_a_record_of_every_step(tmp_path, seed):
    draw, final, step, total = random.Random(seed), {}, 0, 0.0
    every = draw.choice([1, 3, 7])
    while step < 60:
        saved = step - step % every
        start = Start(tmp_path, begin=saved)
        total += 5
        final = {s: t for s, t in final.items() if s <= saved}
        step, unknown = saved, 0.0
        until = min(60, saved + draw.randrange(25))
        while step < until:
            step += 1
            seconds = draw.random()
            start.steps(step, step, seconds)
            final[step] = seconds
            unknown += seconds
            if step % every == 0 or draw.random() < 0.3:
                start.ledger.write()
                total, unknown = total + unknown, 0.0
        if draw.random() < 0.5:
            start.ledger.close()
            total, unknown = total + unknown, 0.0
    start.ledger.close()
    total += unknown  # that of earlier starts is no line's
    found = goodput.load_goodput(tmp_path)
    assert found.seconds["steps"] == pytest.approx(sum(final.values()), abs=0.01)
    assert found.total == pytest.approx(total, abs=0.05)


@pytest.mark.parametrize(
    "damage",
    [b'{"start": "a', b"\x00\xff", b"[]", b"7", b'{"start": "x"}', b"\n\n",
     b'{"start": "x", "time": 1, "segment": 0, "first_step": null, "step": null, "seconds": {"steps": "NaN"}}',
     b'{"start": "x", "time": 1, "segment": 0, "first_step": null, "step": null, "seconds": {"steps": -3}}',
     b'{"start": "x", "time": Infinity, "segment": 0, "first_step": null, "step": null, "seconds": {"steps": 3}}'],
)  # fmt: skip
def test_a_torn_or_damaged_line_costs_no_other(tmp_path, damage):
    first = Start(tmp_path)
    first.steps(1, 4)
    first.ledger.write()
    with (tmp_path / goodput.FILE).open("ab") as file:
        file.write(damage)
    second = Start(tmp_path, begin=4)
    second.steps(5, 8)
    second.ledger.close()
    found = goodput.load_goodput(tmp_path)
    assert (found.starts, found.seconds["steps"], found.seconds["lost"], found.total) == (2, 8, 0, 18)
    assert sum(line.startswith('{"start": "') and '"data": 0.0' in line for line in lines(tmp_path)) == 6


def test_the_first_lines_of_a_start_may_be_missing(tmp_path):
    start = Start(tmp_path)
    start.steps(1, 6)
    start.ledger.close()
    kept = lines(tmp_path)[2:]
    (tmp_path / goodput.FILE).write_text("\n".join(kept) + "\n")
    found = goodput.load_goodput(tmp_path)
    assert (found.seconds["steps"], found.total) == (6, 11)


@pytest.mark.parametrize("jump", [-1e6, -30.0, 1e9])
def test_a_clock_that_was_set_makes_the_break_unknown_and_nothing_else(tmp_path, monkeypatch, jump):
    first = Start(tmp_path, monkeypatch)
    first.steps(1, 4)
    first.ledger.close()
    second = Start(tmp_path, monkeypatch, at=1000.0 + jump, begin=4)
    second.steps(5, 8)
    second.ledger.close()
    found = goodput.load_goodput(tmp_path)
    assert found.between is None and found.fraction == pytest.approx(8 / 18)
    assert "the system time was changed" in found.table() and "goodput/between_starts_seconds" not in found.metrics()
    assert all(math.isfinite(value) for value in found.metrics().values())


def test_a_full_disk_is_said_once_and_stops_nothing(tmp_path, messages):
    os.symlink("/dev/full", tmp_path / goodput.FILE)
    start = Start(tmp_path)
    start.steps(1, 3)
    start.ledger.close()
    assert len(messages) == 1 and "No space left" in messages[0] and goodput.FILE in messages[0]


def test_nothing_is_known_of_a_folder_without_times(tmp_path):
    assert goodput.load_goodput(tmp_path) is None
    (tmp_path / goodput.FILE).write_text("not json\n")
    assert goodput.load_goodput(tmp_path) is None


def test_of_several_processes_one_writes(tmp_path):
    ledger = goodput.TimeLog(tmp_path, ActivityTimer(), writes=False)
    ledger.start_segment(3)
    ledger.close()
    assert not (tmp_path / goodput.FILE).exists()


def test_a_line_holds_what_others_can_read(tmp_path):
    start = Start(tmp_path, begin=2)
    start.steps(3, 3)
    start.ledger.close()
    last = json.loads(lines(tmp_path)[-1])
    assert (last["first_step"], last["step"], last["segment"], last["seconds"]["steps"]) == (2, 3, 1, 1.0)


def test_the_report_shows_the_last_one(tmp_path):
    assert tables.goodput([{"step": 1, "train/loss": 1.0}]) is None
    start = Start(tmp_path)
    start.steps(1, 5)
    start.ledger.close()
    last = goodput.load_goodput(tmp_path).metrics()
    table = tables.goodput([{"step": 3, "goodput": 0.1}, {"step": 5, **last}])
    fractions = {name: fraction for name, _, fraction in table.rows}
    assert table.goodput == 0.5 and fractions["start-up and the rest"] == 0.5
    assert "waiting for data" not in fractions  # which took none
    damaged = tables.goodput([{"step": 5, **last, "goodput/data_seconds": math.nan}])
    assert [name for name, *_ in damaged.rows] == [name for name, *_ in table.rows]
