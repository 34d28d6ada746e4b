"""When callbacks measure and save, and how long a save takes."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from mmjax.core.state import TrainState
from mmjax.experiment import CheckpointConfig, GuardConfig
from mmjax.parallel.preemption import StopRequest
from mmjax.runs.timing import ActivityTimer
from mmjax.train import callbacks
from mmjax.train.callbacks import Callback, Evaluate, SaveCheckpoints
from mmjax.train.guard import Guard


class Hand:
    now = 0.0

    def __call__(self):
        return self.now


class Writer:
    """Checkpoints whose saves the test completes."""

    def __init__(self, hand):
        self.hand, self.saving, self.saved, self.failing = hand, False, [], set()

    @property
    def steps(self):
        return [step for step, _ in self.saved if step not in self.failing]

    def check(self):
        pass

    def save(self, state, *, step, metrics=None, losses=()):
        assert int(state.step) == step
        self.hand.now += 2.0 + (30.0 if self.saving else 0.0)
        self.saving = True
        self.saved.append((step, metrics))

    def finish(self, state, *, step):
        assert step == self.steps[-1] and int(state.step) == step
        self.hand.now += 7.0
        self.saving = False


def state(step):
    return TrainState(step=jnp.int32(step), params={"w": jnp.ones(3)}, opt_state=(), ema_params=None)


@dataclasses.dataclass
class Saver:
    """The callback with all that it talks to."""

    hand: Hand
    writer: Writer
    clock: ActivityTimer
    guard: Guard
    stop: StopRequest
    recorded: list
    flushes: list
    callback: SaveCheckpoints

    def step(self, step):
        self.callback.after_step(step, state(step), {})


@pytest.fixture
def saver(monkeypatch):
    hand = Hand()
    monkeypatch.setattr(callbacks.time, "monotonic", hand)
    return make(hand)


def make(hand, *, evaluate=None, last_step=100, **config):
    writer, clock, recorded, flushes = Writer(hand), ActivityTimer(now=hand), [], []
    guard, stop = Guard(GuardConfig(max_rejected=5)), StopRequest()
    callback = SaveCheckpoints(
        writer,
        CheckpointConfig(**{"every_steps": 5} | config),
        guard=guard,
        evaluate=evaluate,
        stop=stop,
        timer=clock,
        last_step=last_step,
        flush=lambda: flushes.append("flush"),
        before_save=lambda: flushes.append("write"),
        record=lambda name, seconds: recorded.append((name, seconds)),
    )
    return Saver(hand, writer, clock, guard, stop, recorded, flushes, callback)


def test_a_save_has_two_times_and_waits_for_the_one_before(saver, messages):
    saver.step(5)
    saver.hand.now += 3
    saver.step(6)
    assert saver.recorded == [("checkpoint_seconds", 2.0)] and saver.flushes == ["flush", "write"]
    saver.writer.saving = False
    saver.step(7)
    saver.step(8)
    assert saver.recorded[1:] == [("checkpoint_disk_seconds", 5.0)]
    assert messages == ["the checkpoint of step 5 held training up for 2.0 s, on disk after 5.0 s"]
    saver.writer.failing.add(10)
    saver.step(10)
    saver.step(15)
    assert saver.recorded[2:] == [("checkpoint_seconds", 2.0), ("checkpoint_seconds", 32.0)]
    saver.callback.finish(15, state(15))
    assert saver.recorded[4:] == [("checkpoint_disk_seconds", 39.0)] and len(messages) == 1
    assert saver.clock.seconds("checkpoint") == 2 + 2 + 32 + 7


def test_it_saves_when_due_at_the_end_and_when_measured_for_the_best(monkeypatch):
    evaluate = SimpleNamespace(metrics=None)
    plain, best = make(Hand(), last_step=12), make(Hand(), evaluate=evaluate, last_step=12, best="val/rsum")
    for step in range(1, 13):
        evaluate.metrics = {"val/rsum": float(step)} if step in (3, 12) else None
        plain.step(step)
        best.step(step)
    assert plain.writer.saved == [(5, None), (10, None), (12, None)]
    assert best.writer.saved == [(3, {"val/rsum": 3.0}), (5, None), (10, None), (12, {"val/rsum": 12.0})]


def test_a_stop_between_checkpoints_saves_and_one_at_a_checkpoint_does_not_again(saver):
    saver.step(5)
    saver.stop.requested = True
    saver.callback.finish(5, state(5))
    assert [step for step, _ in saver.writer.saved] == [5]
    saver.step(6)
    saver.callback.finish(6, state(6))
    assert [step for step, _ in saver.writer.saved] == [5, 6]


def test_after_rejected_updates_a_checkpoint_is_that_of_the_last_update_but_at_the_end(saver):
    saver.guard.streak = 2
    saver.step(10)
    assert saver.writer.saved == [(8, None)]
    saver.callback.on_divergence(10, state(10))
    assert saver.writer.saved == [(8, None)]  # it is there already
    saver.step(100)
    assert saver.writer.saved == [(8, None), (100, None)]


def test_nothing_is_saved_after_a_divergence_without_rejected_updates(saver):
    saver.callback.on_divergence(7, state(7))
    assert saver.writer.saved == []


def test_evaluation_comes_when_due_after_all_metrics_are_read():
    calls = []
    evaluate = Evaluate(
        lambda step, _: (calls.append(step), {"val/rsum": 1.0})[1],
        every_steps=4,
        last_step=9,
        flush=lambda: calls.append("flush"),
    )
    measured = []
    for step in range(1, 10):
        evaluate.after_step(step, None, {})
        measured.append(evaluate.metrics is not None)
    assert calls == ["flush", 4, "flush", 8, "flush", 9]
    assert [i + 1 for i, done in enumerate(measured) if done] == [4, 8, 9]


def test_a_callback_may_leave_everything_out():
    callback = Callback()
    callback.before_step(1, None)
    callback.after_step(1, None, {})
    callback.finish(1, None)
    callback.on_divergence(1, None)
    callback.close()
