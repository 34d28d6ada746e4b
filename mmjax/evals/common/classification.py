"""Metrics of classification: macro F1, mean average precision, the worst of several groups, and AUROC."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

CHUNK = 4096  # images whose scores are in memory at a time


def predict(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """i64[n]: the class with the highest score, the first of equal ones.

    Args:
        images: f32[n, E].
        classes: f32[C, E].
    """
    starts = range(0, len(images), CHUNK)
    return np.concatenate([np.argmax(images[start : start + CHUNK] @ classes.T, axis=1) for start in starts])


def f1_macro(labels: np.ndarray, predictions: np.ndarray) -> float:
    """The mean over the classes that occur of ``2·TP / (2·TP + FP + FN)``."""
    size = int(max(labels.max(), predictions.max())) + 1
    hits = np.bincount(labels[labels == predictions], minlength=size)
    true, predicted = np.bincount(labels, minlength=size), np.bincount(predictions, minlength=size)
    occurs = true > 0
    return float(np.mean(2 * hits[occurs] / (true + predicted)[occurs]))


def mean_average_precision(images: np.ndarray, classes: np.ndarray, positive: np.ndarray) -> float:
    """The mean over the classes that occur of ``Σ_n (R_n - R_{n-1}) P_n``, precision and recall by threshold.

    Images of equal scores are above or below a threshold together, so their order does not count.

    Args:
        images: f32[n, E].
        classes: f32[C, E].
        positive: bool[n, C].
    """
    result = []
    for embedding, hits in zip(classes, positive.T, strict=True):
        if not hits.any():
            continue
        scores = images @ embedding
        order = np.argsort(-scores, kind="stable")
        last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # the last image of each threshold
        true = np.cumsum(hits[order])[last]
        result.append(float(np.sum(np.diff(true, prepend=0) / true[-1] * (true / (last + 1)))))
    return float(np.mean(result))


def worst_group(hits: np.ndarray, groups: np.ndarray, *, ignored: Collection[int] = ()) -> tuple[float, int]:
    """The lowest mean of a group, and how many groups there are.

    Args:
        hits: bool[n].
        groups: i64[n].
        ignored: Groups that do not count.
    """
    names = [group for group in np.unique(groups).tolist() if group not in ignored]
    return min(float(hits[groups == group].mean()) for group in names), len(names)


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
