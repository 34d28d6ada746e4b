"""Compositional understanding: does an image score higher with its true caption than with a near miss?"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.sample import Unreadable
from mmjax.evals.common.base import Base, OpenSource, open_split
from mmjax.evals.common.embedder import BoundEmbedder


class Evaluator(Base):
    """Pair accuracy by kind of negative, as in SugarCrepe (Hsieh et al. 2023) and VALSE (Parcalabescu et al. 2022).

    One metric for each kind of the examples' ``negatives`` (``replace_shape``, …): the fraction of pairs in which the
    true caption scores strictly higher; chance is 0.5. ``KIND_blind`` is the same with the mean image of the split:
    what exceeds 0.5 there comes from the sentences alone. ``macro`` and ``macro_blind`` are means over kinds, ``micro``
    is over all pairs. ``tie_rate`` is the fraction of pairs with equal scores, which are lost; most of them are
    captions with equal tokens, such as after truncation.
    """

    def __init__(
        self,
        open_source: OpenSource,
        *,
        split: str = "val",
        source: dict[str, Any] | None = None,
        kinds: tuple[str, ...] | None = None,
    ):
        """Opens the split.

        Args:
            open_source: Opens a split of the experiment's data.
            split: A split whose examples have ``negatives``.
            source: Options for ``open_source``.
            kinds: Only these kinds of negatives.
        """
        self.split = open_split(open_source, split, source)
        self.kinds = kinds
        if not any(map(self._has_negatives, range(len(self.split.source)))):
            raise ConfigError(f"split={split!r}: no example has negatives; choose another split or drop this evaluator")

    def _has_negatives(self, index: int) -> bool:
        try:
            return bool(self.split.source.read(index).get("negatives"))
        except Unreadable:  # counted when the split is embedded
            return False

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        images, items, *_ = embedder.read(self.split.source, key=self.split.key)
        pairs = [
            (row, kind, true, false)
            for row, item in enumerate(items)
            for kind, true, false in item.get("negatives") or ()
            if self.kinds is None or kind in self.kinds
        ]
        if not pairs:
            present = sorted({kind for item in items for kind, _, _ in item.get("negatives") or ()})
            raise ConfigError(f"kinds={self.kinds!r}: no such negatives in the split; it has {', '.join(present)}")
        rows, kinds, true, false = zip(*pairs, strict=True)
        # Subtract first: equal embeddings then give exactly 0 for any order of summation.
        gap = embedder.texts(true).astype(np.float64) - embedder.texts(false)
        margin = np.einsum("pe,pe->p", images[list(rows)].astype(np.float64), gap)
        blind = gap @ images.astype(np.float64).mean(0)
        kind_of_pair = np.asarray(kinds)
        result: dict[str, float] = {}
        distinct = sorted(set(kinds))
        for kind in distinct:
            pairs_of_kind = kind_of_pair == kind
            result[kind] = float(np.mean(margin[pairs_of_kind] > 0))
            result[f"{kind}_blind"] = float(np.mean(blind[pairs_of_kind] > 0))
        result["macro"] = float(np.mean([result[kind] for kind in distinct]))
        result["macro_blind"] = float(np.mean([result[f"{kind}_blind"] for kind in distinct]))
        result["micro"] = float(np.mean(margin > 0))
        result["tie_rate"] = float(np.mean(margin == 0))
        return result | {"num_pairs": float(len(pairs))}
