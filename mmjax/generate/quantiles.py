"""The threshold above which a fraction of scores lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mmjax.data.formats.score_table import top_scores


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
    finite = np.isfinite(scores)
    chosen, _ = top_scores(
        np.where(finite, scores, -np.inf),
        fraction,
        names=lambda: np.arange(len(scores)),
        compat="datacomp" if compat == "datacomp" else None,
    )
    chosen &= finite
    if not chosen.any():
        return {"threshold": None, "left_out": []}
    threshold = float(scores[chosen].min())
    left_out = [values[row][0] for row in np.flatnonzero((scores == threshold) & ~chosen).tolist()]
    return {"threshold": threshold, "left_out": left_out}
