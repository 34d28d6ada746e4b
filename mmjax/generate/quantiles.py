"""The threshold above which a fraction of scores lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np


def top_threshold(
    values: Sequence[tuple[str, float]], fraction: float, *, compat: Literal["exact", "datacomp"] = "exact"
) -> dict[str, Any]:
    """The score of the last record at the top ``fraction``, and who of its equals does not belong there.

    NaN and minus infinity are never at the top, but count among all.

    Args:
      values: ids and scores.
      fraction: of all, rounded down to exactly k records; ties are taken in the order given.
      compat: ``datacomp`` takes the record after these as the last one (k + 1 in all), and everyone who scores as high.

    Returns:
      ``threshold`` (None: nobody) and ``left_out``, ids that score exactly that and are not at the top.
    """
    scores = np.array([score for _, score in values], np.float64)
    order = np.argsort(np.where(np.isfinite(scores), -scores, np.inf), kind="stable")
    count = math.floor(round(fraction * len(scores), 9))
    last = min(count, len(scores) - 1) if compat == "datacomp" else count - 1
    usable = int(np.isfinite(scores).sum())
    last = min(last, usable - 1)
    if last < 0:
        return {"threshold": None, "left_out": []}
    threshold = float(scores[order[last]])
    equal = np.flatnonzero(scores == threshold)
    inside = set(order[: last + 1].tolist())
    left_out = [] if compat == "datacomp" else [values[row][0] for row in equal.tolist() if row not in inside]
    return {"threshold": threshold, "left_out": left_out}
