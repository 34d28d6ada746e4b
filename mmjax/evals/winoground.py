"""Winoground: two images and two captions of the same words; each must match its partner."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.evals.common.base import Base, OpenSource, Published, open_split
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.folders import benchmark, first_of
from mmjax.evals.common.pairs import RATES, count_unreadable

_PAPER = "Thrush et al. 2022 (arXiv:2204.03162)"


def _published(model: str, *percent: float) -> Published:
    names = ("text_score", "image_score", "group_score")
    return Published("winoground", model, _PAPER, {k: p / 100 for k, p in zip(names, percent, strict=True)})


class Evaluator(Base):
    """Text, image and group scores over pairs of consecutive examples (Thrush et al. 2022).

    With s_ic the score of image i and caption c (an example's first caption) of one pair::

        text_score:   s_00 > s_01 and s_11 > s_10 (each image picks its caption), chance 1/4
        image_score:  s_00 > s_10 and s_11 > s_01 (each caption picks its image), chance 1/4
        group_score:  both, chance 1/6

    Ties are lost; ``tie_rate`` is the fraction of pairs with a tie, ``identical_rate`` of those whose captions have
    equal tokens, and ``truncation_rate`` of those one of whose captions is longer than the context. If examples have a
    ``kind``, each score is also given as ``NAME_KIND``. There is no blind score: whoever does not look scores 0. Pairs
    one of whose images cannot be read are left out; ``num_unreadable`` counts these images.
    """

    own_split: ClassVar[bool] = True
    headline = ("text_score", "image_score", "group_score", "tie_rate", "num_unreadable")
    over_all = ("text_score", "image_score", "group_score", *RATES)
    published = (
        _published("human", 89.5, 88.5, 85.5),
        _published("CLIP ViT-B/32 (OpenAI)", 30.75, 10.5, 8.0),
    )

    def __init__(self, open_source: OpenSource, *, split: str = "winoground", source: dict[str, Any] | None = None):
        """Opens the split.

        Args:
            open_source: Opens a split of the experiment's data.
            split: A split of pairs.
            source: Options for ``open_source``, such as ``name`` ``mmjax.data.benchmarks.winoground`` and its ``path``.
        """
        self.split = open_split(open_source, split, source)
        if len(self.split.source) % 2:
            raise ConfigError(f"split={split!r}: {len(self.split.source)} examples; pairs need an even number")

    @classmethod
    def find(cls, root: Path) -> dict[str, dict[str, Any]]:
        """The benchmark below ``root``: ``winoground/examples.jsonl`` with ``images``, or ``winoground/*.parquet``.

        Both may lie in ``winoground/data``, as in the published repository.
        """
        for folder in (root / "winoground" / "data", root / "winoground"):
            if sorted(folder.glob("*.parquet")):
                pattern = str(folder / "*.parquet")
                return {"winoground": {"source": {"name": "mmjax.data.benchmarks.winoground", "path": pattern}}}
        path = first_of(root, ("winoground/data/examples.jsonl", "winoground/examples.jsonl"))
        images = first_of(root, ("winoground/data/images", "winoground/images"))
        return benchmark("winoground", "winoground", path, images, expected="winoground/images")

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        images, items, indices, unreadable = embedder.read(self.split.source, key=self.split.key)
        pair, count = np.unique(indices // 2, return_counts=True)
        rows = np.flatnonzero(np.isin(indices // 2, pair[count == 2]))
        if not len(rows):
            raise ConfigError(f"no pair has both of its images; the first that cannot be read: {unreadable[0]}")
        items = [items[row] for row in rows]
        captions_of_pairs = [item["captions"][0] for item in items]
        z = images[rows].astype(np.float64).reshape(len(rows) // 2, 2, -1)
        t = embedder.texts(captions_of_pairs).astype(np.float64).reshape(z.shape)
        tokens, cut = embedder.text_rows(captions_of_pairs), embedder.is_truncated(captions_of_pairs)
        # Subtract embeddings first: equal ones then tie exactly for any order of summation.
        captions, pictures = t[:, 0] - t[:, 1], z[:, 0] - z[:, 1]
        text = np.stack([_dot(z[:, 0], captions), -_dot(z[:, 1], captions)], 1)
        image = np.stack([_dot(t[:, 0], pictures), -_dot(t[:, 1], pictures)], 1)
        right = {
            "text_score": (text[:, 0] > 0) & (text[:, 1] > 0),
            "image_score": (image[:, 0] > 0) & (image[:, 1] > 0),
        }
        right["group_score"] = right["text_score"] & right["image_score"]
        kinds = np.asarray([item.get("kind") or "" for item in items[::2]])
        result = {name: float(hits.mean()) for name, hits in right.items()}
        for kind in sorted(set(kinds.tolist()) - {""}):
            result |= {f"{name}_{kind}": float(hits[kinds == kind].mean()) for name, hits in right.items()}
        result["tie_rate"] = float(np.mean((text == 0).any(1) | (image == 0).any(1)))
        result["identical_rate"] = float(np.mean(tokens[::2] == tokens[1::2]))
        if cut is not None:
            result["truncation_rate"] = float(np.mean(cut.reshape(-1, 2).any(1)))
        num_unreadable = count_unreadable(embedder, self.split)
        return result | {"num_pairs": float(len(z)), "num_unreadable": float(num_unreadable)}


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("pe,pe->p", a, b)
