"""WinoGAViL: which of several pictures go with a cue?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.evals.common.base import Base, OpenSource, Published, open_split
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.folders import benchmark, first_of
from mmjax.evals.common.pairs import count_unreadable

SIZES = (("", 1, 1000), ("_5-6", 5, 6), ("_10-12", 10, 12))
"""Suffixes of metrics, and the least and largest number of candidates that they are about."""

_FILES = "Bitton et al. 2022 (arXiv:2207.12576; means of the predictions and answers in their repository)"


class Evaluator(Base):
    """The mean Jaccard index of chosen and associated pictures (Bitton et al. 2022, arXiv:2207.12576).

    Of a cue's candidates the k that score highest are chosen, k being the number of those that are associated with it::

        jaccard = |chosen and associated| / |chosen or associated|

    over all cues, and over those of 5 or 6 and of 10 to 12 candidates; the last is DataComp's measure. The prompt is
    ``A CUE`` or ``An CUE`` in lower case. ``NAME_blind`` is the same with the mean of all cues: what the pictures alone
    give away. Of equal scores associated pictures are the last to be chosen; ``tie_rate`` is the fraction of cues whose
    choice hangs on a tie. Cues one of whose pictures cannot be read are left out.
    """

    own_split: ClassVar[bool] = True
    headline = (*(f"jaccard{name}{s}" for name, *_ in SIZES for s in ("", "_blind")), "tie_rate", "num_unreadable")
    over_all = ("jaccard", "jaccard_blind", "tie_rate", "truncation_rate")
    published = (
        Published("winogavil", "human", _FILES, {"jaccard_5-6": 0.991, "jaccard_10-12": 0.993}),
        Published("winogavil", "CLIP ViT-B/32 (OpenAI)", _FILES, {"jaccard_5-6": 0.534, "jaccard_10-12": 0.416}),
    )

    def __init__(self, open_source: OpenSource, *, split: str = "test", source: dict[str, Any] | None = None):
        """Opens the benchmark.

        Args:
            open_source: Opens a split of the experiment's data.
            split: A split whose examples have ``cues``; the benchmark has one, whatever its name.
            source: Options for ``open_source``: ``name`` ``mmjax.data.benchmarks.winogavil``, ``path``, ``image_root``.
        """
        self.split = open_split(open_source, split, source)
        if "cues" not in self.split.source.first_readable():
            raise ConfigError(f"split={split!r}: no example has cues; choose another split or drop this evaluator")

    @classmethod
    def find(cls, root: Path) -> dict[str, dict[str, Any]]:
        """The benchmark below ``root``: ``winogavil/winogavil_dataset.csv`` with ``winogavil/winogavil_images``."""
        folders = ("winogavil", "winogavil/assets", "WinoGAViL-experiments/assets")
        path = first_of(root, [f"{folder}/winogavil_dataset.csv" for folder in folders])
        images = first_of(root if path is None else path.parent, ("winogavil_images", "images"))
        return benchmark("winogavil", "winogavil", path, images, expected="winogavil/winogavil_images")

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        images, items, *_ = embedder.read(self.split.source, key=self.split.key)
        candidates: dict[int, list[tuple[int, bool]]] = {}
        texts, sizes = dict[int, str](), dict[int, int]()
        for row, item in enumerate(items):
            for number, cue, is_associated, size in item.get("cues") or ():
                candidates.setdefault(number, []).append((row, is_associated))
                texts[number], sizes[number] = prompt(cue), size
        whole = [number for number in sorted(candidates) if len(candidates[number]) == sizes[number]]
        if not whole:
            raise ConfigError("no cue has all of its pictures; check image_root")
        prompts = [texts[number] for number in whole]
        z, cues = images.astype(np.float64), embedder.texts(prompts).astype(np.float64)
        mean = cues.mean(0)
        scored, blind, tied = [], [], []
        for number, cue in zip(whole, cues, strict=True):
            rows, associated = (np.array(column) for column in zip(*candidates[number], strict=True))
            index, is_tied = jaccard(z[rows] @ cue, associated)
            scored.append(index)
            tied.append(is_tied)
            blind.append(jaccard(z[rows] @ mean, associated)[0])
        size_of_cue = np.array([sizes[number] for number in whole])
        result: dict[str, float] = {}
        for name, least, largest in SIZES:
            chosen = (least <= size_of_cue) & (size_of_cue <= largest)
            if chosen.any():
                result[f"jaccard{name}"] = float(np.mean(np.array(scored)[chosen]))
                result[f"jaccard{name}_blind"] = float(np.mean(np.array(blind)[chosen]))
        result["tie_rate"] = float(np.mean(tied))
        if (cut := embedder.is_truncated(prompts)) is not None:
            result["truncation_rate"] = float(np.mean(cut))
        counts = {"num_cues": len(whole), "num_unreadable": count_unreadable(embedder, self.split)}
        return result | {name: float(value) for name, value in counts.items()}


def jaccard(scores: np.ndarray, associated: np.ndarray) -> tuple[float, bool]:
    """The index of the highest scores, as many as are associated; and whether a tie decides between two candidates.

    Args:
        scores: f[n]; equal in float32 is a tie, which associated candidates lose.
        associated: bool[n], True at least once.
    """
    rounded, k = scores.astype(np.float32), int(associated.sum())
    order = np.lexsort((associated, -rounded))
    hits = int(associated[order[:k]].sum())
    is_tied = k < len(order) and rounded[order[k - 1]] == rounded[order[k]]
    return hits / (2 * k - hits), bool(is_tied)


def prompt(cue: str) -> str:
    """``A cue`` or ``An cue``."""
    cue = cue.lower()
    return f"{'An' if cue[0] in 'aeiou' else 'A'} {cue}"
