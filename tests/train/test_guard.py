"""The guard alone: what it counts, notes and raises, from made-up metrics."""

import math
import statistics

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.experiment import GuardConfig
from mmjax.train.guard import Diverged, Guard, Spike, advise, all_finite
from support import tiny


def metrics(loss=2.0, *, skipped=0, total=0, **others):
    norm = 1.0 if math.isfinite(loss) else loss
    values = {"train/loss": loss, "train/gradient_norm": norm, "train/rejected_updates": float(total)}
    return values | {"train/rejected_update": float(skipped)} | others


class Watched:
    """A guard, and the step it is at."""

    def __init__(self, *, losses=(), rewinds_left=0, augment=(), precision="float32", **options):
        advice = advise(tiny.experiment().optimizer, precision=precision, augmented=bool(augment))
        self.step, self.total = 0, 0
        self.guard = Guard(GuardConfig(**options), advice=advice, losses=losses, rewinds_left=rewinds_left)

    def good(self, loss=2.0, times=1):
        for _ in range(times):
            self.step += 1
            self.guard.judge(self.step, metrics(loss, total=self.total))

    def bad(self, times=1, loss=math.nan, **others):
        for _ in range(times):
            self.step += 1
            self.total += 1
            self.guard.judge(self.step, metrics(loss, skipped=1, total=self.total, **others))


@pytest.mark.parametrize("allowed", [1, 2, 10])
def test_so_many_skipped_in_a_row_end_the_run_and_not_one_fewer(allowed):
    watched = Watched(max_rejected=allowed)
    watched.good(times=3)
    for _ in range(3):
        watched.bad(times=allowed - 1)
        assert watched.guard.streak == allowed - 1
        watched.good()
        assert watched.guard.streak == 0
    last = watched.step
    with pytest.raises(Diverged, match=rf"loss is nan .* at step {last + allowed}\b.*step {last}\b"):
        watched.bad(times=allowed)
    assert watched.guard.streak == allowed


def test_the_first_skipped_update_and_each_tenth_power_is_noted(messages):
    watched = Watched(max_rejected=5)
    for _ in range(250):
        watched.bad()
        watched.good()
    assert len(messages) == 3
    assert [message.split(":")[0] for message in messages] == ["step 1", "step 19", "step 199"]
    assert "the 100th of this run" in messages[2] and "max_rejected=5" in messages[0]


def test_the_way_out_names_what_this_run_can_change():
    def said(**options):
        watched = Watched(max_rejected=1, **options)
        with pytest.raises(Diverged) as raised:
            watched.bad(loss=math.inf)
        return str(raised.value)

    plain = said()
    assert "optimizer.learning_rate (0.01)" in plain and "optimizer.warmup_steps (2)" in plain
    assert "precision" not in plain and "augmentations" not in plain
    everything = said(precision="bfloat16", augment=(("lemda", {}),))
    assert "precision='float32'" in everything and "augmentations switched off" in everything


def test_an_augmentation_with_a_bad_gradient_is_named():
    watched = Watched(max_rejected=1)
    others = {"augment/lemda/gradient_norm": math.inf, "augment/xmda/gradient_norm": 1.0}
    with pytest.raises(Diverged, match=r"that of augment\.lemda too"):
        watched.bad(**others)


def test_a_spike_is_a_loss_above_the_factor_times_the_median_of_the_window():
    random = np.random.default_rng(0)
    for _ in range(20):
        window, factor = int(random.integers(1, 8)), 1.5
        watched = Watched(spike_factor=factor, spike_window=window, rewinds_left=1)
        seen = []
        for loss in random.uniform(1.0, 4.0, 200).tolist():
            due = len(seen) >= window and loss > factor * statistics.median(seen[-window:])
            if due:
                with pytest.raises(Spike) as raised:
                    watched.good(loss)
                assert raised.value.step == watched.step
                break
            watched.good(loss)
            seen.append(loss)
        else:
            raise AssertionError("no spike in these losses; draw others")


def test_skipped_steps_are_in_no_median():
    watched = Watched(spike_factor=2.0, spike_window=3, rewinds_left=1, max_rejected=9)
    watched.good(1.0, times=2)
    watched.bad(times=5)
    watched.good(5.0)  # the third loss: only now is the window full
    watched.good(1.9)
    assert watched.guard.losses == [1.0, 5.0, 1.9]


def test_a_guard_goes_on_where_another_one_stopped():
    whole = Watched(spike_factor=2.0, spike_window=4, rewinds_left=1)
    whole.good(1.0, times=6)
    rest = Watched(spike_factor=2.0, spike_window=4, rewinds_left=1, losses=whole.guard.losses)
    with pytest.raises(Spike):
        rest.good(2.1)
    fresh = Watched(spike_factor=2.0, spike_window=4, rewinds_left=1)
    fresh.good(2.1)


def test_without_rewinds_left_a_spike_is_noted_once_and_becomes_the_new_normal(messages):
    watched = Watched(spike_factor=2.0, spike_window=3)
    watched.good(1.0, times=3)
    watched.good(9.0, times=20)
    assert len(messages) == 1 and "guard.max_rewinds=3 are used up" in messages[0]
    watched.good(30.0)
    assert len(messages) == 2


def test_too_many_skipped_in_a_row_are_a_spike_while_rewinds_are_left():
    watched = Watched(spike_factor=2.0, max_rejected=2, rewinds_left=1)
    with pytest.raises(Spike, match="2nd in a row"):
        watched.bad(times=2)


def test_without_a_factor_no_loss_is_a_spike_and_none_is_kept(messages):
    watched = Watched(max_rejected=3)
    watched.good(1.0, times=200)
    watched.good(1e9)
    assert watched.guard.losses is None and not messages


def test_parameters_are_looked_at_after_skipped_updates_alone():
    good, bad = {"a": np.ones(3, np.float32)}, {"a": np.array([1, np.inf], np.float32), "b": np.ones(2, np.float32)}
    assert all_finite(good) and not all_finite(bad)
    watched = Watched(max_rejected=3)
    watched.guard.check(1, bad)
    watched.bad()
    watched.guard.check(1, good)
    with pytest.raises(Diverged, match="parameters are not finite"):
        watched.guard.check(1, bad)


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_rejected", 0), ("spike_window", 0), ("max_rewinds", 0), ("spike_factor", 1.0), ("spike_factor", -2.0)],
)
def test_settings_that_cannot_be_meant_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"guard\.{key}="):
        tiny.experiment(guard={key: value})
