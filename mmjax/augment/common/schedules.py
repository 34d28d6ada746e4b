"""Strengths that change as training goes on: functions of the traced step, so that no change recompiles."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.core.config import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A number for each step: ``value`` after a linear warm-up, then on to ``final`` over ``over`` steps.

    With ``t = step - start``, ``r = min(1, (t + 1) / (warmup + 1))`` and ``u = clip((t - warmup) / over, 0, 1)``::

        constant:  r · value
        linear:    r · (value + (final - value) · u)
        cosine:    r · (final + (value - final) · ½(1 + cos πu))

    and 0 before step ``start`` and from step ``stop`` on (None: never).
    """

    value: float
    shape: Literal["constant", "linear", "cosine"] = "constant"
    final: float = 0.0
    over: int = 0
    warmup: int = 0
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        for name in ("over", "warmup", "start"):
            if getattr(self, name) < 0:
                raise ConfigError(f"a schedule's {name}={getattr(self, name)}: must be at least 0 steps")
        if (self.shape == "constant") != (self.over == 0):
            way = "leave it out" if self.shape == "constant" else "set it to the steps that the change takes"
            raise ConfigError(f"a schedule's over={self.over} with shape={self.shape!r}: {way}")
        if self.stop is not None and self.stop <= self.start:
            raise ConfigError(f"a schedule's stop={self.stop}: must come after its start={self.start}")

    @property
    def still(self) -> bool:
        """Whether the value is the same at every step."""
        return self.shape == "constant" and self.warmup == self.start == 0 and self.stop is None

    @property
    def extremes(self) -> tuple[float, ...]:
        """The values between which the schedule moves, but for zero while it is off or warms up."""
        return (self.value,) if self.shape == "constant" else (self.value, self.final)


Strength = float | Schedule
"""An option that is a number, or the section of a ``Schedule``, e.g. ``dict(value=0.5, warmup=100)``."""


def at(strength: Strength, step: jax.Array) -> jax.Array:
    """f32[]: the strength at a traced step."""
    if not isinstance(strength, Schedule):
        return jnp.float32(strength)
    s = strength
    t = step.astype(jnp.float32) - s.start
    value = jnp.float32(s.value)
    if s.shape != "constant":
        done = jnp.clip((t - s.warmup) / s.over, 0.0, 1.0)
        if s.shape == "cosine":
            done = 0.5 * (1 - jnp.cos(jnp.pi * done))
        value = value + (s.final - s.value) * done
    value = value * jnp.minimum(1.0, (t + 1) / (s.warmup + 1))
    on = t >= 0 if s.stop is None else (t >= 0) & (t < s.stop - s.start)
    return jnp.where(on, value, 0.0)


def check(strength: Strength, *, path: str, low: float = 0.0, high: float | None = None) -> None:
    """Raises where the strength can leave [low, high]; ``path`` is the option to blame."""
    for value in strength.extremes if isinstance(strength, Schedule) else (strength,):
        if not value >= low or (high is not None and value > high):
            limit = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise ConfigError(f"{path}={value}: must be {limit}")
