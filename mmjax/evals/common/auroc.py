"""The area under the ROC curve, by ranks."""

from __future__ import annotations

import numpy as np


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """P(a positive scores higher than a negative) + P(they tie) / 2, over all pairs of one of each.

    This is the Mann-Whitney statistic: the mean rank of positives, where ties share the mean of their ranks. Scores
    that are equal in float32 tie, because sums of the same numbers in another order differ in less.

    Args:
        positive: f[n], at least one.
        negative: f[m], at least one.
    """
    n, m = len(positive), len(negative)
    _, value, counts = np.unique(
        np.concatenate([positive, negative]).astype(np.float32), return_inverse=True, return_counts=True
    )
    rank = np.cumsum(counts) - (counts - 1) / 2  # from 1, of each value
    return float((rank[value[:n]].sum() - n * (n + 1) / 2) / (n * m))
