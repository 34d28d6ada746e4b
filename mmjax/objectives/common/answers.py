"""Answers to questions as classes: the group of an example is its answer."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.config import ConfigError
from mmjax.core.files import read_json
from mmjax.core.groups import group_number


def read_answers(value: tuple[str, ...] | str, *, key: str) -> tuple[str, ...]:
    """The answers in order: as they are, or from a JSON file with a list of them."""
    if isinstance(value, str):
        try:
            content = read_json(Path(value))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{key}={value!r}: {error}") from None
        if not isinstance(content, list) or not all(isinstance(answer, str) for answer in content):
            raise ConfigError(f"{key}={value!r}: expected a JSON list of answers")
        value = tuple(content)
    if repeated := {answer for answer in value if value.count(answer) > 1} if len(value) < 10**4 else set():
        raise ConfigError(f"{key}: {min(repeated)!r} is listed twice; list each answer once")
    return value


def answer_labels(group: jax.Array, answers: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """i32[N] and bool[N]: which answer each row's group is, and whether it is any."""
    numbers = np.array([group_number(answer) for answer in answers], np.int32)
    order = np.argsort(numbers)
    place = jnp.minimum(jnp.searchsorted(numbers[order], group), len(answers) - 1)
    return jnp.asarray(order, jnp.int32)[place], jnp.asarray(numbers)[order][place] == group
