"""Rates of the steps, their model FLOPs, and the times of saves."""

import dataclasses
import time
from types import SimpleNamespace

import pytest

from mmjax.planning import abstract_data
from mmjax.program.chips import GIB
from mmjax.runs.timing import ActivityTimer
from mmjax.train import flops, rates
from mmjax.train.program import Program
from mmjax.train.rates import Rates, measured
from mmjax.train.saves import Saves
from support import tiny


class Hand:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def hand(monkeypatch):
    hand = Hand()
    monkeypatch.setattr(rates.time, "perf_counter", hand)
    return hand


def made(hand, *, flops=lambda: None, peak=None, devices=4):
    clock = ActivityTimer(now=hand)
    return clock, Rates(clock, batch_size=32, devices=devices, flops=flops, peak=peak)


def test_rates_are_those_since_the_restart(hand):
    known = []
    clock, one = made(hand, flops=lambda: known[0] if known else None, peak=1e12)
    hand.now += 100
    with clock.measure("data"):
        hand.now += 50
    one.restart()
    hand.now += 3
    with clock.measure("data"):
        hand.now += 1
    assert one.over(2) == {"train/examples_per_second": 16.0, "train/data_wait": 0.25}
    known.append(4e12)  # of a step on four devices
    assert one.over(2)["train/flops_per_second_per_device"] == pytest.approx(0.5e12)
    assert one.over(2)["train/mfu"] == pytest.approx(0.5)
    assert all(measured(name) for name in one.over(2))


def test_without_a_peak_there_is_no_share_of_it(hand):
    _, one = made(hand, flops=lambda: 4e12)
    hand.now += 1
    assert "train/mfu" not in one.over(1) and one.over(1)["train/flops_per_second_per_device"] == 1e12


def test_times_are_told_once_and_add_up(hand):
    _, one = made(hand)
    one.tell("checkpoint_seconds", 1.0)
    one.tell("checkpoint_seconds", 2.0)
    one.tell("compile_seconds", 5.0)
    told = one.told()
    assert told == {"train/checkpoint_seconds": 3.0, "train/compile_seconds": 5.0} and all(map(measured, told))
    assert one.told() == {}


def test_the_memory_of_the_fullest_device_is_shown_once_and_always_written(hand, monkeypatch, messages):
    stats = [{"bytes_in_use": n * GIB, "peak_bytes_in_use": 2 * n * GIB, "bytes_limit": 80 * GIB} for n in (3, 5)]
    devices = [SimpleNamespace(memory_stats=lambda s=s: s) for s in (*stats, None, {})]
    monkeypatch.setattr(rates.jax, "local_devices", lambda: devices)
    _, one = made(hand)
    for _ in range(2):
        assert one.told() == {"train/hbm_bytes": 5 * GIB, "train/hbm_peak_bytes": 10 * GIB}
    assert messages == ["device memory: at most 10.0 of 80.0 GiB in use so far"]


@pytest.mark.parametrize(
    ("precision", "kind", "peak"),
    [("bfloat16", "NVIDIA H100 80GB HBM3", 989e12), ("float32", "NVIDIA H100 80GB HBM3", None), ("bfloat16", "", None)],
)
def test_only_bfloat16_is_compared_with_the_published_peak(monkeypatch, precision, kind, peak):
    monkeypatch.setattr(rates.jax, "local_devices", lambda: [SimpleNamespace(device_kind=kind)])
    assert rates.peak_of(precision) == peak


def test_what_a_run_computes_is_not_taken_for_a_measurement_of_speed():
    assert not any(map(measured, ("train/loss", "val/rsum", "train/unreadable_examples", "final/weights_of_step")))
    assert measured("goodput") and measured("goodput/steps_seconds") and measured("train/data_wait")


@pytest.mark.parametrize("remat", ["none", "full"])
def test_flops_beside_compilation_are_those_of_the_step_with_nothing_computed_twice(remat):
    experiment, _ = abstract_data.resolve_without_data(tiny.experiment(), shards=8)
    experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, remat=remat))
    batch = abstract_data.batch_shapes(experiment)
    traced = Program(experiment).trace(batch)
    counted = flops.beside(experiment, batch, traced=traced)
    assert remat == "full" or counted() is not None  # with no waiting
    deadline = time.monotonic() + 60
    while counted() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert counted() == flops.of_step(experiment, batch) > 0
    assert (flops.products(traced.jaxpr) > counted()) == (remat == "full")


class Writer:
    """Checkpoints that the test finishes."""

    def __init__(self, hand):
        self.hand, self.saving, self.saved, self.checks = hand, False, [], 0

    @property
    def steps(self):
        return [step for step, _ in self.saved if step != 6]  # which could not be written

    def check(self):
        self.checks += 1

    def save(self, state, *, step, metrics=None, losses=()):
        self.hand.now += 2.0 + (30.0 if self.saving else 0.0)
        self.saving = True
        self.saved.append((step, metrics))

    def finish(self, state, *, step):
        assert step == 7
        self.hand.now += 7.0
        self.saving = False


def test_a_save_has_two_times_and_waits_for_the_one_before(hand, monkeypatch, messages):
    monkeypatch.setattr("mmjax.train.saves.time.monotonic", hand)
    clock, writer, told = ActivityTimer(now=hand), Writer(hand), []
    saves = Saves(writer, clock)
    saves.tell = lambda name, seconds: told.append((name, seconds))
    saves.save(None, step=5, metrics={"val/rsum": 1.0})
    hand.now += 3
    saves.look()
    assert told == [("checkpoint_seconds", 2.0)] and writer.saved == [(5, {"val/rsum": 1.0})]
    writer.saving = False
    saves.look()
    saves.look()
    assert told[1:] == [("checkpoint_disk_seconds", 5.0)]
    assert messages == ["the checkpoint of step 5 held training up for 2.0 s, on disk after 5.0 s"]
    saves.save(None, step=6)
    saves.save(None, step=7)
    assert told[2:] == [("checkpoint_seconds", 2.0), ("checkpoint_seconds", 32.0)]
    saves.finish(None, step=7)
    assert told[4:] == [("checkpoint_disk_seconds", 39.0)] and len(messages) == 1
    assert clock.seconds("checkpoint") == 2 + 2 + 32 + 7
