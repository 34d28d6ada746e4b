"""Pairs of a true and a false caption of one image: which one a model prefers, and what that may come from."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.evals.common.base import Split
from mmjax.evals.common.embedder import BoundEmbedder

logger = logging.getLogger(__name__)

RATES = ("tie_rate", "identical_rate", "truncation_rate")
"""What ``Pairs.quality`` gives beside numbers."""

CHUNK = 8192  # pairs whose embeddings are in memory at a time


class Pairs(NamedTuple):
    """The pairs of a split under one set of parameters.

    With z the image, z̄ the mean image of the split, t the true and f the false caption::

        margin = z·(t - f)    blind = z̄·(t - f)    true = z·t    true_blind = z̄·t

    Captions with equal tokens have a margin of exactly 0: embeddings are subtracted first.
    """

    images: np.ndarray  # i64[p]: the row of the image
    kinds: np.ndarray  # str[p]
    groups: np.ndarray  # str[p]: a finer division, such as the relation; "" without one
    true_texts: np.ndarray  # object[p]
    false_texts: np.ndarray  # object[p]
    margin: np.ndarray  # f64[p]
    blind: np.ndarray  # f64[p]
    true: np.ndarray  # f64[p]
    true_blind: np.ndarray  # f64[p]
    identical: np.ndarray  # bool[p]: both captions have the same tokens
    truncated: np.ndarray | None  # bool[p]: one of the captions is cut; None if the tokenizer does not say
    num_unreadable: int  # images and annotations that cannot be read, and are left out

    def select(self, chosen: np.ndarray) -> Pairs:
        """The pairs where ``chosen`` bool[p]."""
        arrays = {name: array[chosen] for name, array in self._asdict().items() if isinstance(array, np.ndarray)}
        return self._replace(**arrays)

    def accuracy(self) -> dict[str, float]:
        """The fraction of pairs in which the true caption scores strictly higher: ``""``, and ``"_blind"``."""
        return {suffix: float(np.mean(margin > 0)) for suffix, margin in self._margins()}

    def all_of_group(self) -> dict[str, float]:
        """The fraction of groups of one image all of whose pairs have a strictly higher true caption."""
        labels = np.char.add(np.char.add(self.images.astype(str), " "), self.groups)
        _, group = np.unique(labels, return_inverse=True)
        return {s: float(np.mean(np.bincount(group, ~(x > 0)) == 0)) for s, x in self._margins()}

    def by_group(self) -> dict[str, tuple[int, dict[str, float]]]:
        """Number of pairs and ``accuracy`` of each group, over all images."""
        names, group, counts = np.unique(self.groups, return_inverse=True, return_counts=True)
        won = {s: np.bincount(group, x > 0) / counts for s, x in self._margins()}
        return {
            name: (int(counts[i]), {s: float(fraction[i]) for s, fraction in won.items()})
            for i, name in enumerate(names.tolist())
        }

    def quality(self) -> dict[str, float]:
        """What to know beside accuracies: ties, captions that are cut or equal, and how many pairs there are."""
        result = {"tie_rate": float(np.mean(self.margin == 0))}
        result["identical_rate"] = float(np.mean(self.identical))
        if self.truncated is not None:
            result["truncation_rate"] = float(np.mean(self.truncated))
        return result | {"num_pairs": float(len(self.margin)), "num_unreadable": float(self.num_unreadable)}

    def _margins(self) -> tuple[tuple[str, np.ndarray], ...]:
        return ("", self.margin), ("_blind", self.blind)


def score_pairs(embedder: BoundEmbedder, split: Split, *, kinds: Collection[str] | None = None) -> Pairs:
    """Scores the pairs in the examples' ``negatives``, of which ``groups`` divides them further if it is there.

    Args:
        embedder: Of one set of parameters.
        split: Whose examples have ``negatives``, tuples (kind, true caption, false caption).
        kinds: Only these kinds.
    """
    images, items, *_ = embedder.read(split.source, key=split.key)
    table = []
    for row, item in enumerate(items):
        negatives = item.get("negatives") or ()
        groups = item.get("groups") or [""] * len(negatives)
        table += [(row, *pair, group) for pair, group in zip(negatives, groups, strict=True)]
    present = sorted({kind for _, kind, *_ in table})
    table = [pair for pair in table if kinds is None or pair[1] in kinds]
    if not table:
        raise ConfigError(f"kinds={kinds!r}: no such negatives in the split; it has {', '.join(present)}")
    rows, kind_of_pair, true, false, group_of_pair = zip(*table, strict=True)
    texts = list(dict.fromkeys((*true, *false)))
    number = {text: i for i, text in enumerate(texts)}
    t, f = (np.array([number[text] for text in side]) for side in (true, false))
    z, tokens, cut = embedder.texts(texts), embedder.text_rows(texts), embedder.is_truncated(texts)
    image = np.array(rows)
    mean = images.astype(np.float64).mean(0)
    scores = np.empty((4, len(table)))
    for start in range(0, len(table), CHUNK):
        part = slice(start, start + CHUNK)
        picture, caption = images[image[part]].astype(np.float64), z[t[part]].astype(np.float64)
        gap = caption - z[f[part]]
        scores[:, part] = _dot(picture, gap), gap @ mean, _dot(picture, caption), caption @ mean
    margin, blind, true_score, true_blind = scores
    return Pairs(
        images=image,
        kinds=np.array(kind_of_pair),
        groups=np.array(group_of_pair),
        true_texts=np.array(true, object),
        false_texts=np.array(false, object),
        margin=margin,
        blind=blind,
        true=true_score,
        true_blind=true_blind,
        identical=tokens[t] == tokens[f],
        truncated=None if cut is None else cut[t] | cut[f],
        num_unreadable=count_unreadable(embedder, split),
    )


def count_unreadable(embedder: BoundEmbedder, split: Split) -> int:
    """How many examples of the split cannot be read, or were left out when it was opened; the first one is logged."""
    left_out = [f"{key}: {reason}" for key, reason, _ in split.source.unreadable]
    missing = left_out + list(map(str, embedder.read(split.source, key=split.key).unreadable))
    if missing:
        logger.warning(
            "%d pictures or annotations cannot be used and do not count, the first: %s", len(missing), missing[0]
        )
    return len(missing)


def metrics_by_kind(pairs: Pairs) -> dict[str, float]:
    """The accuracy of each kind, their mean ``macro``, ``micro`` over all pairs, and ``Pairs.quality``."""
    result: dict[str, float] = {}
    kinds = sorted(set(pairs.kinds.tolist()))
    for kind in kinds:
        result |= {f"{kind}{suffix}": value for suffix, value in pairs.select(pairs.kinds == kind).accuracy().items()}
    micro = {f"micro{suffix}": value for suffix, value in pairs.accuracy().items()}
    return result | macro(result, kinds, "macro") | micro | pairs.quality()


def macro(metrics: dict[str, float], names: Collection[str], name: str) -> dict[str, float]:
    """``name`` and ``name_blind``: the unweighted means of those ``names`` that there are; empty if there are none."""
    present = [n for n in names if n in metrics]
    if not present:
        return {}
    return {f"{name}{s}": float(np.mean([metrics[f"{n}{s}"] for n in present])) for s in ("", "_blind")}


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("pe,pe->p", a, b)
