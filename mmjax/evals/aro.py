"""ARO: relations, attributes and word order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mmjax.core.config import ConfigError, Ge
from mmjax.evals.common.base import OpenSource, Published
from mmjax.evals.common.caption_benchmarks import LISTS
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.folders import benchmark, first_of
from mmjax.evals.common.pair_benchmark import PairBenchmark
from mmjax.evals.common.pairs import RATES, Pairs, metrics_by_kind, score_pairs

_CE_CLIP = "Zhang et al. 2024 (CE-CLIP, arXiv:2306.08832)"
_FOLDERS = ("aro", "ARO", ".")


def _published(model: str, relation: float, attribution: float) -> tuple[Published, Published]:
    return (
        Published("aro_relation", model, _CE_CLIP, {"macro_asymmetric": relation / 100}),
        Published("aro_attribution", model, _CE_CLIP, {"macro": attribution / 100}),
    )


class Evaluator(PairBenchmark):
    """ARO (Yuksekgonul et al. 2023, arXiv:2210.01936), by the kinds of the examples' ``negatives``.

    ``relation`` and ``attribution``: ``micro`` over pairs, and ``macro`` over the groups, which are relations, or pairs
    of attributes of at least ``min_count`` pairs. The authors report ``macro_asymmetric`` for relations: without those
    that also hold with the sides exchanged, or that are rare. Any other kind is word order: ``precision@1`` is the
    fraction of captions that score strictly higher than all of their shuffles, and each kind of shuffle stands beside
    it; chance is 1 / (1 + ``num_negatives``). The authors win ties in word order and lose them elsewhere.
    """

    headline = (
        *(
            f"{name}{suffix}"
            for name in ("micro", "macro", "macro_asymmetric", "precision@1")
            for suffix in ("", "_blind")
        ),
        *("tie_rate", "num_unreadable"),
    )
    over_all = ("micro", "micro_blind", *RATES)
    published = (
        *_published("CLIP ViT-B/32 (OpenAI)", 59.3, 62.9),
        *_published("NegCLIP ViT-B/32", 80.2, 70.5),
        *_published("CLIP-SVLC ViT-B/32", 80.6, 73.0),
        *_published("CE-CLIP ViT-B/32", 83.0, 76.4),
        *_published("BLIP", 59.0, 88.0),
        *_published("XVLM (COCO)", 73.4, 86.8),
    )

    def __init__(
        self,
        open_source: OpenSource,
        *,
        split: str = "test",
        source: dict[str, Any] | None = None,
        kinds: tuple[str, ...] | None = None,
        left_out: str | None = None,
        min_count: Annotated[int, Ge(1, "use 1 to keep all")] = 25,
    ):
        """Opens one of the four data sets.

        Args:
            open_source: Opens a split of the experiment's data.
            split: A split whose examples have ``negatives`` and ``groups``; the benchmark has one, whatever its name.
            source: The ``name`` ``mmjax.data.benchmarks.aro`` or ``….word_order``, and its options.
            kinds: Only these kinds of negatives.
            left_out: A file with the relations that ``macro_asymmetric`` leaves out, one a line; None: the authors'.
            min_count: Pairs of attributes with fewer pairs are left out of ``macro``.
        """
        super().__init__(open_source, split=split, source=source, kinds=kinds)
        self.left_out = _read_lines(Path(left_out) if left_out else Path(__file__).parent / "aro_left_out.txt")
        self.min_count = min_count

    @classmethod
    def find(cls, root: Path) -> dict[str, dict[str, Any]]:
        """What is there of ARO's data sets below ``root``.

        ``aro/visual_genome_{relation,attribution}.json`` with ``aro/images``; ``coco/coco_karpathy_test.json`` with
        ``coco/val2014``; ``flickr30k/flickr30k_test.json`` with ``flickr30k/flickr30k-images``; or where ``retrieval``
        finds these lists.
        """
        result: dict[str, dict[str, Any]] = {}
        for name in ("relation", "attribution"):
            path = first_of(root, [f"{folder}/visual_genome_{name}.json" for folder in _FOLDERS])
            images = path and first_of(path.parent, ("images",))
            result |= benchmark(f"aro_{name}", "aro", path, images, expected="aro/images")
        for layout in LISTS:
            path, images = layout.find(root)
            name = f"aro_{layout.dataset}_order"
            result |= benchmark(name, "word_order", path, images, expected=layout.expected)
        return result

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        pairs = score_pairs(embedder, self.split, kinds=self.kinds)
        kinds = set(pairs.kinds.tolist())
        if kinds == {"relation"}:
            groups = self._macro(pairs, "macro") | self._macro(pairs, "macro_asymmetric", left_out=self.left_out)
        elif kinds == {"attribution"}:
            groups = self._macro(pairs, "macro", min_count=self.min_count)
        else:
            accuracies = {f"precision@1{suffix}": value for suffix, value in pairs.all_of_group().items()}
            num_captions = len(set(zip(pairs.images.tolist(), pairs.groups.tolist(), strict=True)))
            return metrics_by_kind(pairs) | accuracies | {"num_negatives": len(pairs.margin) / num_captions}
        micro = {f"micro{suffix}": value for suffix, value in pairs.accuracy().items()}
        return micro | groups | pairs.quality()

    def _macro(
        self, pairs: Pairs, name: str, *, min_count: int = 1, left_out: frozenset[str] = frozenset()
    ) -> dict[str, float]:
        """The mean over groups, how many there are, and nothing if there are none."""
        by_group = pairs.by_group().items()
        kept = [accuracy for group, (n, accuracy) in by_group if n >= min_count and group not in left_out]
        means = {f"{name}{s}": float(np.mean([accuracy[s] for accuracy in kept])) for s in ("", "_blind") if kept}
        return means | {f"num_groups_{name}": float(len(kept))}


def _read_lines(path: Path) -> frozenset[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"left_out={str(path)!r}: cannot be read ({error}); name a text file") from None
    return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))
