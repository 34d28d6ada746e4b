"""Answers to questions as classes: the group of an example is its answer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.groups import group_number


def answer_labels(group: jax.Array, answers: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """i32[N] and bool[N]: which answer each row's group is, and whether it is any."""
    numbers = np.array([group_number(answer) for answer in answers], np.int32)
    order = np.argsort(numbers)
    place = jnp.minimum(jnp.searchsorted(numbers[order], group), len(answers) - 1)
    return jnp.asarray(order, jnp.int32)[place], jnp.asarray(numbers)[order][place] == group
