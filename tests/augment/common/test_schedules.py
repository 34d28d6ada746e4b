import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.augment.common.schedules import Fraction, Schedule, Strength, value_at
from mmjax.core.config import ConfigError, coerce


def reference(s, step):
    """The docstring's equations, one step at a time."""
    if step < s.start or (s.stop is not None and step >= s.stop):
        return 0.0
    t = step - s.start
    value = s.value
    if s.shape != "constant":
        u = min(max((t - s.warmup) / s.over, 0), 1)
        progress = u if s.shape == "linear" else 0.5 * (1 - math.cos(math.pi * u))
        value = s.value + (s.final - s.value) * progress
    return value * min(1, (t + 1) / max(s.warmup, 1))


CASES = [
    Schedule(value=0.4),
    Schedule(value=0.4, warmup=5),
    Schedule(value=2.0, start=3, stop=9),
    Schedule(value=1.0, shape="linear", over=10),
    Schedule(value=1.0, shape="cosine", over=10, final=0.2, warmup=4, start=2),
    Schedule(value=0.0, shape="linear", over=6, final=3.0, stop=12),
]


@pytest.mark.parametrize("schedule", CASES, ids=repr)
def test_values_are_the_equations_in_one_compilation(schedule):
    traces = []
    compiled = jax.jit(lambda step: traces.append(step) or value_at(schedule, step))
    got = [compiled(jnp.int32(step)) for step in range(20)]
    np.testing.assert_allclose(got, [reference(schedule, step) for step in range(20)], atol=1e-6)
    assert len(traces) == 1


def test_landmarks():
    s = Schedule(value=1.0, shape="cosine", over=10, final=0.2, warmup=4, start=2)
    assert [round(float(value_at(s, jnp.int32(t))), 3) for t in (1, 2, 6, 11, 16, 99)] == [0, 0.25, 1.0, 0.6, 0.2, 0.2]
    assert value_at(0.25, jnp.int32(7)) == 0.25


@pytest.mark.parametrize(
    ("section", "blamed"),
    [
        ({"shape": "linear"}, "over=0"),
        ({"over": 5}, "over=5"),
        ({"start": 5, "stop": 5}, "stop=5"),
    ],
)
def test_sections_that_say_nothing_definite_are_refused(section, blamed):
    with pytest.raises(ConfigError, match=blamed):
        Schedule(value=1.0, **section)


def test_an_option_is_a_number_or_a_section_whose_mistakes_are_named():
    assert coerce(1, float | Schedule, path="w") == 1.0
    assert coerce({"value": 1, "warmup": 3}, float | Schedule, path="w") == Schedule(value=1.0, warmup=3)
    with pytest.raises(ConfigError, match=r"w\.warmpu=3: unknown key; did you mean 'warmup'"):
        coerce({"value": 1, "warmpu": 3}, float | Schedule, path="w")


def test_ranges_are_checked_at_both_ends():
    section = {"value": 0.5, "shape": "linear", "over": 3, "final": 1.0}
    assert coerce(section, Fraction, path="p").final == 1.0
    with pytest.raises(ConfigError, match=r"p=1\.5: must be between 0 and 1"):
        coerce(section | {"final": 1.5}, Fraction, path="p")
    with pytest.raises(ConfigError, match=r"p=nan"):
        coerce(float("nan"), Strength, path="p")
    with pytest.raises(ConfigError, match=r"p\.warmup=-1: must be at least 0"):
        coerce({"value": 1.0, "warmup": -1}, Strength, path="p")
