"""Sequences of labels, such as glosses, from a field of examples to numbers of one length."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.sample import Example


def split_labels(value: Any) -> list[str]:
    """The labels in a field: a text's are its words, and a list has them itself; none if there is nothing."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return []
    if isinstance(value, list | tuple | np.ndarray):
        return [_text(label) for label in value]
    return _text(value).split()


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelSequences:
    """Reads the labels of examples as numbers.

    Args:
        field: Of the examples.
        names: All labels there are.
        longest: The most labels of a sequence.
    """

    field: str
    names: tuple[str, ...]
    longest: int

    def check(self, example: Example) -> None:
        """Raises ConfigError if an example, the first, has no such field."""
        if self.field not in example:
            raise ConfigError(
                f"labels={self.field!r}: the source's examples have no field {self.field!r}; they have "
                f"{', '.join(sorted(map(str, example)))}"
            )

    def numbers(self, fields: Mapping[str, Any]) -> np.ndarray:
        """i32[longest]: the places of an example's labels in ``names``, and -1 behind them.

        It is -1 alone where there is a ``problem``.
        """
        row = np.full(self.longest, -1, np.int32)
        if self.problem(fields) is None:
            places = [self._places[label] for label in split_labels(fields[self.field])]
            row[: len(places)] = places
        return row

    def problem(self, fields: Mapping[str, Any]) -> str | None:
        """Why an example has no labels that can be used; None: it has."""
        labels = split_labels(fields.get(self.field))
        if unknown := next((label for label in labels if label not in self._places), None):
            return f"{unknown!r} is not in model.recognizer.labels"
        if len(labels) > self.longest:
            return f"{len(labels)} labels are more than {self.longest} (model.recognizer.max_labels, or frames)"
        return None if labels else "there are none"

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return dict(zip(self.names, range(len(self.names)), strict=True))
