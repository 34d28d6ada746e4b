"""A field of all examples of a source that has to read them for it: once, and then from the index."""

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
    value: Callable[[int], Any],
    *,
    name: str,
    threads: int,
    known: Callable[[], str],
) -> np.ndarray:
    """``value(0) … value(count - 1)``: numbers (f64, nan where there is none) or texts (empty where there is none).

    ``kind`` and ``paths`` say what the values depend on; ``known`` ends the error where there are none at all.
    """

    def values(start: int) -> list[Any]:
        return [value(place) for place in range(start, min(start + _CHUNK, count))]

    def build() -> dict[str, np.ndarray]:
        with ThreadPoolExecutor(threads) as pool:
            found = [value for chunk in pool.map(values, range(0, count, _CHUNK)) for value in chunk]
        there = [value for value in found if value is not None]
        if not there:
            raise ConfigError(f"column {name!r}: no example has this field; {known()}")
        if all(isinstance(value, (int, float)) for value in there):
            return {"column": np.array([np.nan if value is None else float(value) for value in found])}
        if all(isinstance(value, str) for value in there):
            return {"column": np.array(["" if value is None else value.replace("\0", "") for value in found])}
        raise ConfigError(f"column {name!r}: its values are neither all numbers nor all texts; choose another")

    return index_cache.load_or_build(kind, paths, build)["column"]
