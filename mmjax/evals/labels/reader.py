"""What reads the labels of sequences for an evaluator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class LabelReader(NamedTuple):
    """A model that recognizes labels, such as glosses."""

    read: Callable[[Any, dict[str, jax.Array]], jax.Array]  # pure: (params, {modality: f32[B, T, D]}) -> i32[B, G]
    names: tuple[str, ...]  # of labels 0, 1, …; -1 is none
    field: str  # of the examples, with their own

    def decode(self, labels: np.ndarray) -> list[list[str]]:
        """The names of i32[n, G]."""
        return [[self.names[label] for label in row if label >= 0] for row in labels.tolist()]
