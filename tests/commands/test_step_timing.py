"""Step times of recipes: whose steps are compared with whose, with timers in place of compiled programs."""

import numpy as np

from mmjax.commands.common import step_timing


class Timer:
    """Its steps get slower with all steps that were timed before, as on a machine that heats up."""

    timed: list[str]
    made: list[str]

    def __init__(self, name, experiment):
        self.name, self.factor, self.seconds, self.steps = name, experiment, [], set()

    def time(self):
        self.timed.append(self.name)
        self.seconds.append(self.factor * (1 + 0.01 * len(self.timed)))

    def time_batch(self, step):
        self.made.append(self.name)
        cost = 2 if step in self.steps else 50  # of what has not been read before
        self.steps.add(step)
        return cost * self.factor * (1 + 0.01 * len(self.made))


def test_each_recipe_is_timed_in_turn_with_the_first_so_that_drift_cancels(monkeypatch):
    monkeypatch.setattr(step_timing, "_Timer", Timer)
    for name in ("timed", "made"):
        monkeypatch.setattr(Timer, name, [], raising=False)
    rows = step_timing.compare_steps([("none", 1.0), ("a", 1.5), ("b", 3.0)], repeats=4)
    assert Timer.timed == ["none"] * 4 + ["none", "a"] * 4 + ["none", "b"] * 4
    assert [row["recipe"] for row in rows] == ["none", "a", "b"] and rows[0]["ratio"] == 1
    np.testing.assert_allclose([row["ratio"] for row in rows], [1, 1.5, 3], rtol=0.02)
    np.testing.assert_allclose([row["first_seconds"] for row in rows], 1.1, atol=0.15)  # warmer with each turn
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in rows)
    np.testing.assert_allclose([row["batch_ratio"] for row in rows], [1, 1.5, 3], rtol=0.02)
    assert all(row["batch_seconds"] < 20 for row in rows)  # without the first one
