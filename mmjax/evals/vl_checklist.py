"""VL-CheckList: objects, attributes and relations, each a tree of properties."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmjax.evals.common.base import Published
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.folders import benchmark, first_of
from mmjax.evals.common.pair_benchmark import PairBenchmark
from mmjax.evals.common.pairs import Pairs, score_pairs

_CE_CLIP = "Zhang et al. 2024 (CE-CLIP, arXiv:2306.08832)"


def _published(model: str, *percent: float) -> Published:
    names = ("attribute", "object", "relation", "macro")
    return Published("vl_checklist", model, _CE_CLIP, {k: p / 100 for k, p in zip(names, percent, strict=True)})


class Evaluator(PairBenchmark):
    """VL-CheckList (Zhao et al. 2022, arXiv:2207.00221): the accuracy of each list, and means up its tree.

    A list such as ``attribute_color_vg`` has the fraction of its pairs in which the true text scores strictly higher.
    ``attribute_color`` is the mean of its lists, ``attribute``, ``object`` and ``relation`` of what stands below them
    (``object`` of ``object_location`` and ``object_size``), and ``macro`` of these three: as in the paper, whatever the
    numbers of pairs. Means are over what is there: pictures of three collections belong to it, so see the number of
    lists, ``num_lists``, of which the published files have 56.
    """

    headline = (
        *(f"{name}{suffix}" for name in ("attribute", "object", "relation", "macro") for suffix in ("", "_blind")),
        *("tie_rate", "num_lists", "num_unreadable"),
    )
    published = (
        _published("CLIP ViT-B/32 (OpenAI)", 67.4, 80.0, 63.0, 69.2),
        _published("NegCLIP ViT-B/32", 70.9, 84.1, 68.9, 73.4),
        _published("CLIP-SVLC ViT-B/32", 72.0, 85.0, 68.95, 74.2),
        _published("CE-CLIP ViT-B/32", 72.6, 84.6, 71.8, 75.1),
    )

    @classmethod
    def find(cls, root: Path) -> dict[str, dict[str, Any]]:
        """The benchmark below ``root``: ``vl_checklist``, a checkout, and the folders ``vg``, ``swig`` and ``hake``.

        These three may lie in the checkout, in ``vl_checklist/datasets`` or in ``root`` itself.
        """
        path = first_of(root, ("vl_checklist", "VL-CheckList"), holding="corpus/v1")
        folders = [root] if path is None else [path, path / "datasets", root]
        images = next((folder for folder in folders if first_of(folder, ("vg", "swig", "hake"))), None)
        return benchmark("vl_checklist", "vl_checklist", path, images, expected="vg, swig and hake")

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        pairs = score_pairs(embedder, self.split, kinds=self.kinds)
        return _tree(pairs) | pairs.quality()


def _tree(pairs: Pairs) -> dict[str, float]:
    kinds = sorted(set(pairs.kinds.tolist()))
    scores = {tuple(kind.lower().split("/")): pairs.select(pairs.kinds == kind).accuracy() for kind in kinds}
    for depth in range(max(map(len, scores)) - 1, -1, -1):
        below: dict[tuple[str, ...], list[dict[str, float]]] = {}
        for place, accuracy in scores.items():
            if len(place) == depth + 1:
                below.setdefault(place[:depth], []).append(accuracy)
        for place, several in below.items():
            scores[place] = {
                suffix: float(np.mean([accuracy[suffix] for accuracy in several])) for suffix in several[0]
            }
    named = {"_".join(place) or "macro": accuracy for place, accuracy in sorted(scores.items())}
    result = {f"{name}{suffix}": value for name, accuracy in named.items() for suffix, value in accuracy.items()}
    return result | {"num_lists": float(len(kinds))}
