"""Metrics of classification: macro F1, mean average precision, and the worst of several groups."""

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
