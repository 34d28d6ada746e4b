"""VALSE: captions against foils that differ in one linguistic phenomenon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.benchmarks.valse import PIECES
from mmjax.evals.common.base import Published
from mmjax.evals.common.classification import auroc
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.folders import COCO_VAL2017, benchmark, first_of
from mmjax.evals.common.pair_benchmark import PairBenchmark
from mmjax.evals.common.pairs import Pairs, macro, metrics_by_kind, score_pairs

COUNTING = tuple(piece for piece in PIECES if piece.startswith("counting"))

_CE_CLIP = "Zhang et al. 2024 (CE-CLIP, arXiv:2306.08832)"
_COLUMNS = (
    *("existence", "plurals", "counting", "relations", "action-replacement", "actant-swap"),
    *("coreference-standard", "coreference-hard", "foil-it", "macro"),
)
_ROOTS = {
    "visual7w": ("visual7w/images", "visual7w"),
    "SWiG": ("swig/images_512", "swig", "SWiG/images_512", "SWiG"),
    "coco2017": COCO_VAL2017,
    "COCO_train2014": ("coco/train2014", "train2014"),
    "COCO_val2014": ("coco/val2014", "val2014"),
    "VisualDialog_val2018": ("visdial/VisualDialog_val2018", "VisualDialog_val2018"),
}


def _published(model: str, *percent: float) -> Published:
    return Published("valse", model, _CE_CLIP, {k: p / 100 for k, p in zip(_COLUMNS, percent, strict=True)})


class Evaluator(PairBenchmark):
    """VALSE (Parcalabescu et al. 2022, arXiv:2112.07566) by its eleven pieces, on valid foils.

    The accuracy of a piece is the authors' ``acc_r``: the fraction of pairs in which the caption scores strictly higher
    than the foil. ``PIECE_auroc`` compares each caption of the piece with each foil, whatever their pictures; a tie
    counts a half. ``counting`` is the mean of its three pieces, ``macro`` and ``macro_auroc`` of all eleven. Accuracies
    that need a threshold, which cosines have none of, are left out. Captions of coreference are long dialogues whose
    last word decides: see ``truncation_rate``.
    """

    headline = (
        *(*PIECES, "counting", "macro", "macro_blind", "macro_auroc"),
        *("tie_rate", "truncation_rate", "num_unreadable"),
    )
    published = (
        _published("CLIP ViT-B/32 (OpenAI)", 68.7, 57.1, 61.0, 65.4, 77.8, 71.8, 54.1, 51.0, 89.8, 65.3),
        Published("valse", "NegCLIP ViT-B/32", _CE_CLIP, {"macro": 0.716}),
        Published("valse", "CE-CLIP ViT-B/32", _CE_CLIP, {"macro": 0.725}),
        Published("valse", "BLIP", _CE_CLIP, {"macro": 0.700}),
        Published("valse", "XVLM (COCO)", _CE_CLIP, {"macro": 0.695}),
    )

    @classmethod
    def find(cls, root: Path) -> dict[str, dict[str, Any]]:
        """The benchmark below ``root``: ``valse/existence.json`` and others, and those collections that are there.

        ``visual7w/images``, ``swig/images_512``, ``visdial/VisualDialog_val2018``, and ``val2017``, ``train2014`` and
        ``val2014`` of ``coco``.
        """
        path = first_of(root, ("valse", "valse/data", "VALSE/data", "VALSE"), holding="existence.json")
        roots = {name: str(folder) for name, names in _ROOTS.items() if (folder := first_of(root, names))}
        return benchmark("valse", "valse", path, roots, expected=", ".join(names[0] for names in _ROOTS.values()))

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        pairs = score_pairs(embedder, self.split, kinds=self.kinds)
        areas: dict[str, float] = {}
        kinds = sorted(set(pairs.kinds.tolist()))
        for kind in kinds:
            areas |= {f"{kind}_auroc{suffix}": x for suffix, x in _areas(pairs.select(pairs.kinds == kind)).items()}
        result = metrics_by_kind(pairs)
        mean = {f"macro_auroc{s}": float(np.mean([areas[f"{k}_auroc{s}"] for k in kinds])) for s in ("", "_blind")}
        return result | macro(result, COUNTING, "counting") | areas | mean


def _areas(pairs: Pairs) -> dict[str, float]:
    return {
        "": auroc(pairs.true, pairs.true - pairs.margin),
        "_blind": auroc(pairs.true_blind, pairs.true_blind - pairs.blind),
    }
