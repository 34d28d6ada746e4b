"""Options that change during training: functions of the traced step, so that no change recompiles."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from mmjax.core.config import Between, ConfigError, Ge


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A number for each step: ``value`` after a linear warm-up, then on to ``final`` over ``over`` steps.

    With ``t = step - start``, ``r = min(1, (t + 1) / warmup)`` and ``u = clip((t - warmup) / over, 0, 1)``::

        constant:  r · value
        linear:    r · (value + (final - value) · u)
        cosine:    r · (final + (value - final) · ½(1 + cos πu))

    It is 0 before step ``start`` and from step ``stop`` on (None: never). As an option of an augmentation it is a
    section of a config, e.g. ``dict(value=0.5, warmup=100)``.
    """

    value: float
    shape: Literal["constant", "linear", "cosine"] = "constant"
    final: float = 0.0
    over: Annotated[int, Ge(0)] = 0
    warmup: Annotated[int, Ge(0)] = 0
    start: Annotated[int, Ge(0)] = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        if (self.shape == "constant") != (self.over == 0):
            way = "leave it out" if self.shape == "constant" else "set it to the steps that the change takes"
            raise ConfigError(f"a schedule's over={self.over} with shape={self.shape!r}: {way}")
        if self.stop is not None and self.stop <= self.start:
            raise ConfigError(f"a schedule's stop={self.stop}: must come after its start={self.start}")

    @property
    def is_constant(self) -> bool:
        """Whether the value is the same at every step."""
        return self.shape == "constant" and self.warmup == self.start == 0 and self.stop is None

    @property
    def extremes(self) -> tuple[float, ...]:
        """The values it moves between, apart from 0 while it is off or warms up; ranges of options check them."""
        return (self.value,) if self.shape == "constant" else (self.value, self.final)


Strength = Annotated[float | Schedule, Ge(0)]
"""An option that is a number of at least 0, or a schedule of such numbers."""

Fraction = Annotated[float | Schedule, Between(0, 1)]
"""The same between 0 and 1."""


def value_at(strength: Strength, step: jax.Array) -> jax.Array:
    """f32[]: the number at a traced step."""
    if not isinstance(strength, Schedule):
        return jnp.float32(strength)
    s = strength
    t = step.astype(jnp.float32) - s.start
    value = jnp.float32(s.value)
    if s.shape != "constant":
        progress = jnp.clip((t - s.warmup) / s.over, 0.0, 1.0)
        if s.shape == "cosine":
            progress = 0.5 * (1 - jnp.cos(jnp.pi * progress))
        value = value + (s.final - s.value) * progress
    value = value * jnp.minimum(1.0, (t + 1) / max(s.warmup, 1))
    on = t >= 0 if s.stop is None else (t >= 0) & (t < s.stop - s.start)
    return jnp.where(on, value, 0.0)


def largest_value(strength: Strength) -> float:
    """The largest number that it takes at any step."""
    return max(strength.extremes) if isinstance(strength, Schedule) else strength
