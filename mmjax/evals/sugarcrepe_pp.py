"""SugarCrepe++: two captions of the same meaning against a hard negative, with the image and without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.benchmarks.sugarcrepe import KINDS
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.folders import COCO_VAL2017, benchmark, first_of
from mmjax.evals.common.pair_benchmark import PairBenchmark
from mmjax.evals.common.pairs import Pairs, macro, score_pairs


class Evaluator(PairBenchmark):
    """Image-to-text and text-only accuracy (Dumpala et al. 2024, arXiv:2406.11171).

    With an image z, two true captions p and q that share few words, and a false one n that shares many::

        KIND       z·p > z·n and z·q > z·n      chance 1/3; KIND_blind: the same with the mean image
        KIND_text  p·q > p·n and p·q > q·n      chance 1/3; the text tower alone

    ``macro`` and ``macro_text`` are means over kinds. Ties are lost; ``tie_rate``, ``identical_rate`` and ``num_pairs``
    are about pairs of a true and a false caption, two of each example.
    """

    headline = (*KINDS, *(f"{kind}_text" for kind in KINDS), "macro", "macro_blind", "macro_text", "num_unreadable")

    @classmethod
    def find(cls, root: Path) -> dict[str, dict[str, Any]]:
        """The benchmark below ``root``: ``sugarcrepe_pp/replace_obj.json`` and others, and ``coco/val2017``."""
        folders = ("sugarcrepe_pp", "SugarCrepe_pp/data", "SugarCrepe_pp", "scpp/data", "sugarcrepe++")
        path = first_of(root, folders, holding="replace_obj.json")
        images = first_of(root, COCO_VAL2017)
        return benchmark("sugarcrepe_pp", "sugarcrepe", path, images, expected=COCO_VAL2017[0])

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        pairs = score_pairs(embedder, self.split, kinds=self.kinds)
        result: dict[str, float] = {}
        kinds = sorted(set(pairs.kinds.tolist()))
        for kind in kinds:
            chosen = pairs.select(pairs.kinds == kind)
            result |= {f"{kind}{suffix}": value for suffix, value in chosen.all_of_group().items()}
            result[f"{kind}_text"] = _text_accuracy(embedder, chosen)
        result |= macro(result, kinds, "macro")
        result["macro_text"] = float(np.mean([result[f"{kind}_text"] for kind in kinds]))
        return result | pairs.quality()


def _text_accuracy(embedder: BoundEmbedder, pairs: Pairs) -> float:
    first, second = pairs.groups[0::2], pairs.groups[1::2]
    if len(first) != len(second) or (first != second).any():
        raise ConfigError(
            "negatives: each false caption needs two true ones in a row, of one group, as SugarCrepe++ has"
        )
    p, q, n = (
        embedder.texts(texts.tolist()).astype(np.float64)
        for texts in (pairs.true_texts[0::2], pairs.true_texts[1::2], pairs.false_texts[0::2])
    )
    # Subtract first: equal embeddings then tie exactly.
    won = (np.einsum("pe,pe->p", p, q - n) > 0) & (np.einsum("pe,pe->p", q, p - n) > 0)
    return float(won.mean())
