"""One field of all examples, for sources that must read every example to get it: read once, then cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.storage import index_cache

_CHUNK = 256


def load_or_scan(
    kind: str,
    paths: Sequence[str],
    count: int,
    read: Callable[[int], Any],
    *,
    name: str,
    threads: int,
    hint: Callable[[], str],
) -> np.ndarray:
    """``read(0)`` to ``read(count - 1)`` as an array: numbers (f64, NaN for None) or texts (empty for None).

    Args:
      kind: what the values depend on besides ``paths``.
      paths: the files that ``read`` reads.
      count: number of examples.
      read: the field's value of one example.
      name: of the field, for errors.
      threads: that read concurrently.
      hint: ends the error if no example has the field.
    """

    def read_chunk(start: int) -> list[Any]:
        return [read(index) for index in range(start, min(start + _CHUNK, count))]

    def build() -> dict[str, np.ndarray]:
        with ThreadPoolExecutor(threads) as pool:
            values = [value for chunk in pool.map(read_chunk, range(0, count, _CHUNK)) for value in chunk]
        present = [value for value in values if value is not None]
        if not present:
            raise ConfigError(f"column {name!r}: no example has this field; {hint()}")
        if all(isinstance(value, (int, float)) for value in present):
            return {"column": np.array([np.nan if value is None else float(value) for value in values])}
        if all(isinstance(value, str) for value in present):
            return {"column": np.array(["" if value is None else value.replace("\0", "") for value in values])}
        raise ConfigError(f"column {name!r}: its values are neither all numbers nor all texts; choose another")

    return index_cache.load_or_build(kind, paths, build)["column"]
