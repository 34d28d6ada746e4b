"""Compositional understanding: does an image score higher with its true caption than with a near miss?"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from mmjax.core.config import ConfigError
from mmjax.data.sample import Unreadable
from mmjax.evals.common.base import Base, OpenSource, open_split
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.pairs import RATES, metrics_by_kind, score_pairs


class Evaluator(Base):
    """Pair accuracy by kind of negative, as in SugarCrepe (Hsieh et al. 2023) and VALSE (Parcalabescu et al. 2022).

    One metric for each kind of the examples' ``negatives`` (``replace_shape``, …): the fraction of pairs in which the
    true caption scores strictly higher; chance is 0.5. ``KIND_blind`` is the same with the mean image of the split:
    what exceeds 0.5 there comes from the sentences alone. ``macro`` is the mean over kinds, and ``micro`` is over all
    pairs. ``tie_rate`` is the fraction of pairs with equal scores, which are lost; most of them are captions with equal
    tokens (``identical_rate``), such as after truncation (``truncation_rate``: one of the captions is longer than the
    context). Images that cannot be read are counted (``num_unreadable``) and left out.
    """

    headline: ClassVar[Collection[str]] = ("macro", "macro_blind", "micro", "tie_rate")
    over_all: ClassVar[Collection[str]] = ("macro", "macro_blind", "micro", "micro_blind", *RATES)

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
        return metrics_by_kind(score_pairs(embedder, self.split, kinds=self.kinds))
