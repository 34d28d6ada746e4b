"""Retrieval in two steps: the best by their embeddings, put in order by how well each pair matches as a whole."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, ClassVar

import numpy as np

from mmjax.core.config import Ge
from mmjax.data.text import MaxCaptions, Norm
from mmjax.evals import retrieval
from mmjax.evals.common.base import OpenSource
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.ranks import Ranks, Ties, count_ranks

_BLOCK = 1024
"""Queries whose cosines with everything are held at a time."""

_GAINS = ("image_to_text_R@1_gain", "text_to_image_R@1_gain", "rsum_gain")


class Evaluator(retrieval.Evaluator):
    """Recalls after re-ranking, the protocol of ALBEF (Li et al. 2021, arXiv:2107.07651, section 4).

    Each query's ``k`` best of the other side by cosine are ordered by ``match + similarity_weight · cosine``, of which
    the first is the matching head's logit. ALBEF has no second term; the released code of BLIP (Li et al. 2022,
    arXiv:2201.12086) has it with the weight 1. What is behind them stays where it was, so a positive that is not among
    the k keeps its rank; the released codes give all that is behind one score. ALBEF re-ranks 256 of COCO and 128 of
    Flickr30k, and ViLT scores every pair (``k=None``).

    Metrics are those of ``retrieval``, without the geometry of embeddings; ``*_gain`` is what the second step adds.
    Ties among the k count as there. It needs a model with a section ``model.fusion``.
    """

    published = ()
    needs_head: ClassVar[str | None] = "match"

    def __init__(
        self,
        open_source: OpenSource,
        *,
        split: str = "val",
        source: dict[str, Any] | None = None,
        k: Annotated[int, Ge(1)] | None = 128,
        similarity_weight: Annotated[float, Ge(0)] = 0.0,
        ties: Ties = "pessimistic",
        max_captions: MaxCaptions = None,
        caption_norm: Norm = "none",
        merge_repeats: bool = True,
    ):
        """Opens the split.

        Args:
            open_source: Opens a split of the experiment's data.
            split: The split to measure on.
            source: Options for ``open_source``.
            k: How many are re-ranked for each query; None: all.
            similarity_weight: Of the cosine in the score. Choose it on validation data.
            ties: How negatives count that score as high as the positive.
            max_captions: Use only this many captions of each image.
            caption_norm: How captions are cleaned, as in ``retrieval``.
            merge_repeats: Equal captions are one caption, and equal pictures one image.
        """
        super().__init__(
            open_source,
            split=split,
            source=source,
            ties=ties,
            max_captions=max_captions,
            caption_norm=caption_norm,
            merge_repeats=merge_repeats,
        )
        self.k, self.similarity_weight = k, similarity_weight

    @classmethod
    def metric_names(cls) -> Collection[str]:
        """Those of recalls, what re-ranking adds, and counts."""
        one = Ranks(np.zeros(1, np.int32), np.zeros(1, np.int32))
        return [*retrieval.metrics(one, one), *_GAINS, *retrieval.COUNTS]

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        data = self._embed(embedder)
        n, m = len(data.images), len(data.texts)
        before = count_ranks(data.images, data.own, data.texts, np.arange(m), row_sharding=embedder.row_sharding)
        texts_of, text_cosines = _nearest(data.images, data.texts, self.k)
        images_of, image_cosines = _nearest(data.texts, data.images, self.k)
        # Each pair once, though it may be wanted in both directions.
        wanted = [
            (np.arange(n)[:, None] * m + texts_of).ravel(),
            (images_of * m + np.arange(m)[:, None]).ravel(),
        ]
        pairs, place = np.unique(np.concatenate(wanted), return_inverse=True)
        match = embedder.match(self.split.source, data.indices[pairs // m], data.captions, pairs % m)[place]
        by_image = match[: texts_of.size].reshape(texts_of.shape) + self.similarity_weight * text_cosines
        by_text = match[texts_of.size :].reshape(images_of.shape) + self.similarity_weight * image_cosines
        own = [set(line[line >= 0].tolist()) for line in data.own]
        is_own = np.array([[int(j) in own[i] for j in line] for i, line in enumerate(texts_of)])
        is_own_image = np.array([[j in own[int(i)] for i in line] for j, line in enumerate(images_of)])
        after = (
            _rerank(before[0], by_image, is_own),
            _rerank(before[1], by_text, is_own_image),
        )
        first, result = (retrieval.metrics(*ranks, ties=self.ties) for ranks in (before, after))
        gains = {name: result[name.removesuffix("_gain")] - first[name.removesuffix("_gain")] for name in _GAINS}
        return result | gains | self._counts(embedder, data)


def _nearest(queries: np.ndarray, gallery: np.ndarray, k: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the gallery with the highest cosines, i64[q, k], best first, and these cosines f32[q, k]."""
    k = len(gallery) if k is None else min(k, len(gallery))
    rows, cosines = [], []
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK] @ gallery.T
        rows.append(np.argsort(-block, axis=1, kind="stable")[:, :k])
        cosines.append(np.take_along_axis(block, rows[-1], axis=1))
    return np.concatenate(rows), np.concatenate(cosines)


def _rerank(before: Ranks, scores: np.ndarray, is_own: np.ndarray) -> Ranks:
    """Ranks after the candidates f32[q, k] are ordered by ``scores``; those without a positive among them stay."""
    best = np.where(is_own, scores, -np.inf).max(axis=1, keepdims=True)
    found_one = is_own.any(axis=1)
    above, equal = ((~is_own & hit).sum(axis=1, dtype=np.int32) for hit in (scores > best, scores == best))
    return Ranks(np.where(found_one, above, before.above), np.where(found_one, equal, before.equal))
