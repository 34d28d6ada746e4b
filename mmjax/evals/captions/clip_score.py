"""CLIPScore and RefCLIPScore, from unit embeddings of any model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PREFIX = "A photo depicts "
"""What the paper puts before each caption, references included."""

_WEIGHT = 2.5


def clip_scores(images: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """CLIPScore of each caption (Hessel et al. 2021, arXiv:2104.08718): ``2.5 · max(cos, 0)``, f64[n].

    Args:
        images: [n, E], unit rows.
        captions: [n, E], unit rows of ``PREFIX`` and the caption.
    """
    return _WEIGHT * np.maximum(_cosines(images, captions), 0)


def ref_clip_scores(images: np.ndarray, captions: np.ndarray, references: Sequence[np.ndarray]) -> np.ndarray:
    """RefCLIPScore, f64[n]: the harmonic mean of CLIPScore and of ``max(0, cosine to the nearest reference)``.

    The published code has no max there, and divides by zero where both are; here the mean is then 0.

    Args:
        images, captions: as in ``clip_scores``.
        references: the unit rows [r, E] of each caption's references, with ``PREFIX``.
    """
    by_image = clip_scores(images, captions)
    each = zip(np.asarray(captions, np.float64), references, strict=True)
    by_text = np.array([max(0.0, float((np.asarray(refs, np.float64) @ own).max())) for own, refs in each])
    total = by_image + by_text
    return np.divide(2 * by_image * by_text, total, out=np.zeros(len(total)), where=total > 0)


def _cosines(images: np.ndarray, captions: np.ndarray) -> np.ndarray:
    return (np.asarray(images, np.float64) * captions).sum(axis=1)
