"""What published benchmarks of true and false captions share."""

from __future__ import annotations

from typing import Any, ClassVar

from mmjax.evals import pairwise
from mmjax.evals.common.base import OpenSource


class PairBenchmark(pairwise.Evaluator):
    """``pairwise`` on a benchmark that is data of its own, which the option ``source`` opens."""

    own_split: ClassVar[bool] = True

    def __init__(
        self,
        open_source: OpenSource,
        *,
        split: str = "test",
        source: dict[str, Any] | None = None,
        kinds: tuple[str, ...] | None = None,
    ):
        """Opens the benchmark.

        Args:
            open_source: Opens a split of the experiment's data.
            split: A split whose examples have ``negatives``; the benchmarks have one, whatever its name.
            source: The ``name`` of a reader of ``mmjax.data.benchmarks``, and its options. None: the experiment's data.
            kinds: Only these kinds of negatives.
        """
        super().__init__(open_source, split=split, source=source, kinds=kinds)
