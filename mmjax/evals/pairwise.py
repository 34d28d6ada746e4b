"""Compositional understanding: does an image prefer its true caption to a nearly equal false one?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.evals.common.embedder import BoundEmbedder, open_split


class Evaluator:
    """Pair accuracy by kind of negative, as in SugarCrepe (Hsieh et al. 2023) and VALSE (Parcalabescu et al. 2022).

    A metric for each kind in the items' ``negatives`` (``replace_shape``, …): the fraction of pairs where the true
    caption scores strictly higher; chance is 0.5. Beside it ``KIND_blind``: the same for the mean image of the split
    instead of the image itself. What is beyond 0.5 there is what the sentences alone give away. ``macro`` and
    ``macro_blind`` are means over kinds, ``micro`` is over all pairs, and ``tie_rate`` is the fraction of pairs with
    equal scores (mostly captions that tokenize equally, such as after truncation), which are lost.
    """

    own_split: ClassVar[bool] = False
    """Any split whose items have negatives will do."""

    def __init__(
        self,
        open_source: Callable[..., Any],
        *,
        split: str = "val",
        source: dict[str, Any] | None = None,
        kinds: tuple[str, ...] | None = None,
    ):
        """``source``: options for ``open_source``; ``kinds``: only these kinds of negatives."""
        self.split = open_split(open_source, split, source)
        self.kinds = kinds
        if not self.split.source[0].get("negatives") and not any(
            self.split.source[i].get("negatives") for i in range(1, len(self.split.source))
        ):
            raise ConfigError(f"split={split!r}: no item has negatives; choose another split or drop this evaluator")

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
        # The difference first: equal embeddings then give exactly 0, whatever the order of summation.
        gap = embedder.texts(true).astype(np.float64) - embedder.texts(false)
        margin = np.einsum("pe,pe->p", images[list(rows)].astype(np.float64), gap)
        blind = gap @ images.astype(np.float64).mean(0)
        of_kind = np.asarray(kinds)
        result: dict[str, float] = {}
        every = sorted(set(kinds))
        for kind in every:
            mine = of_kind == kind
            result[kind] = float(np.mean(margin[mine] > 0))
            result[f"{kind}_blind"] = float(np.mean(blind[mine] > 0))
        result["macro"] = float(np.mean([result[kind] for kind in every]))
        result["macro_blind"] = float(np.mean([result[f"{kind}_blind"] for kind in every]))
        result["micro"] = float(np.mean(margin > 0))
        result["tie_rate"] = float(np.mean(margin == 0))
        return result | {"num_pairs": float(len(pairs))}
