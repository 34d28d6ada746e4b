"""Metrics of the steps: when they are read, how fast the steps were, and the model FLOPs in them."""

import dataclasses
import time
from types import SimpleNamespace

import pytest

from mmjax.planning import abstract_data
from mmjax.program.chips import GIB
from mmjax.program.flops import count_flops
from mmjax.runs.timing import ActivityTimer
from mmjax.train import metrics
from mmjax.train.metrics import StepMetrics, Throughput
from mmjax.train.program import Program
from support import tiny
from support.speed_metrics import is_speed_metric


class Hand:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def hand():
    return Hand()


def throughput(hand, *, flops=lambda: None, peak=None, devices=4):
    clock = ActivityTimer(now=hand)
    return clock, Throughput(clock, batch_size=32, devices=devices, flops=flops, peak=peak)


def take_step(clock, hand, speed, *, step=5, seconds=1.0, waiting=0.0, is_logged=False):
    """What the readers after it see of a step of ``seconds``, a part of them ``waiting`` for data."""
    with clock.measure("steps"):
        hand.now += seconds - waiting
        with clock.measure("data"):
            hand.now += waiting
    values = {}
    speed.update_metrics(step, values, is_logged=is_logged)
    return values


def test_rates_are_those_since_the_last_logged_step(hand):
    known = []
    clock, speed = throughput(hand, flops=lambda: known[0] if known else None, peak=1e12)
    take_step(clock, hand, speed, seconds=100.0, waiting=50.0, is_logged=True)
    take_step(clock, hand, speed, seconds=2.0)
    values = take_step(clock, hand, speed, seconds=2.0, waiting=1.0)
    assert values == {"train/examples_per_second": 16.0, "train/data_wait": 0.25}
    known.append(4e12)  # of a step on four devices
    values = take_step(clock, hand, speed, seconds=2.0)
    assert values["train/flops_per_second_per_device"] == pytest.approx(0.5e12)
    assert values["train/mfu"] == pytest.approx(0.5)
    assert all(map(is_speed_metric, values))


def test_evaluations_and_saves_are_no_slow_steps(hand):
    clock, speed = throughput(hand)
    take_step(clock, hand, speed)
    with clock.measure("evaluation"):
        hand.now += 1000
    with clock.measure("checkpoint"):
        hand.now += 1000
    assert take_step(clock, hand, speed)["train/examples_per_second"] == 32.0


def test_without_a_peak_there_is_no_share_of_it(hand):
    clock, speed = throughput(hand, flops=lambda: 4e12)
    values = take_step(clock, hand, speed)
    assert "train/mfu" not in values and values["train/flops_per_second_per_device"] == 1e12


def test_times_are_written_once_and_add_up(hand):
    clock, speed = throughput(hand)
    speed.record("checkpoint_seconds", 1.0)
    speed.record("checkpoint_seconds", 2.0)
    speed.record("compile_seconds", 5.0)
    assert "train/compile_seconds" not in take_step(clock, hand, speed)
    values = take_step(clock, hand, speed, is_logged=True)
    assert values["train/checkpoint_seconds"] == 3.0 and values["train/compile_seconds"] == 5.0
    assert all(map(is_speed_metric, values))
    assert "train/compile_seconds" not in take_step(clock, hand, speed, is_logged=True)


def test_the_memory_of_the_fullest_device_is_shown_once_and_always_written(hand, monkeypatch, messages):
    stats = [{"bytes_in_use": n * GIB, "peak_bytes_in_use": 2 * n * GIB, "bytes_limit": 80 * GIB} for n in (3, 5)]
    devices = [SimpleNamespace(memory_stats=lambda s=s: s) for s in (*stats, None, {})]
    monkeypatch.setattr(metrics.jax, "local_devices", lambda: devices)
    clock, speed = throughput(hand)
    for _ in range(2):
        values = take_step(clock, hand, speed, is_logged=True)
        assert (values["train/hbm_bytes"], values["train/hbm_peak_bytes"]) == (5 * GIB, 10 * GIB)
    assert messages == ["device memory: at most 10.0 of 80.0 GiB in use so far"]


def test_metrics_are_read_one_step_late():
    calls = []

    def on_metrics(step, values, *, is_logged):
        calls.append((step, values["train/loss"], values["augment/x/loss"], is_logged))

    read = StepMetrics(on_metrics, every_steps=3, last_step=5)
    for step in range(1, 6):
        read.after_step(step, None, {"loss": step / 2, "augment/x/loss": 1.0})
        assert [call[0] for call in calls] == [*range(1, step)]
    read.finish(5, None)
    read.flush()
    assert [call[1:3] for call in calls] == [(0.5, 1.0), (1.0, 1.0), (1.5, 1.0), (2.0, 1.0), (2.5, 1.0)]
    assert [call[0] for call in calls if call[3]] == [1, 3, 5]


@pytest.mark.parametrize(
    ("precision", "kind", "peak"),
    [("bfloat16", "NVIDIA H100 80GB HBM3", 989e12), ("float32", "NVIDIA H100 80GB HBM3", None), ("bfloat16", "", None)],
)
def test_only_bfloat16_is_compared_with_the_published_peak(monkeypatch, precision, kind, peak):
    monkeypatch.setattr(metrics.jax, "local_devices", lambda: [SimpleNamespace(device_kind=kind)])
    assert metrics.peak_of(precision) == peak


def test_what_a_run_computes_is_not_taken_for_a_measurement_of_speed():
    assert not any(map(is_speed_metric, ("train/loss", "val/rsum", "train/unreadable_examples", "final/rewinds")))
    assert is_speed_metric("goodput/steps_seconds") and is_speed_metric("train/data_wait")


@pytest.mark.parametrize("remat", ["none", "full"])
def test_flops_beside_compilation_are_those_of_the_step_with_nothing_computed_twice(remat):
    experiment, _ = abstract_data.resolve_without_data(tiny.experiment(), shards=8)
    experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, remat=remat))
    batch = abstract_data.batch_shapes(experiment)
    program = Program(experiment)
    traced = program.trace(batch)
    counted = program.count_flops_beside(batch, traced=traced)
    assert remat == "full" or counted() is not None  # with no waiting
    deadline = time.monotonic() + 60
    while counted() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert counted() == program.count_flops(batch) > 0
    assert (count_flops(traced.jaxpr) > counted()) == (remat == "full")
