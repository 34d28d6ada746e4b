"""Winoground: two images and two captions of the same words; each must match its partner."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.evals.common.base import Base, OpenSource, open_split
from mmjax.evals.common.embedder import BoundEmbedder


class Evaluator(Base):
    """Text, image and group scores over pairs of consecutive examples (Thrush et al. 2022).

    With s_ic the score of image i and caption c (an example's first caption) of one pair::

        text_score:   s_00 > s_01 and s_11 > s_10 (each image picks its caption), chance 1/4
        image_score:  s_00 > s_10 and s_11 > s_01 (each caption picks its image), chance 1/4
        group_score:  both, chance 1/6

    Ties are lost; ``tie_rate`` is the fraction of pairs with a tie. If examples have a ``kind``, each score is also
    given as ``NAME_KIND``.
    """

    own_split: ClassVar[bool] = True

    def __init__(self, open_source: OpenSource, *, split: str = "winoground", source: dict[str, Any] | None = None):
        """Opens the split.

        Args:
            open_source: Opens a split of the experiment's data.
            split: A split of pairs.
            source: Options for ``open_source``.
        """
        self.split = open_split(open_source, split, source)
        if len(self.split.source) % 2:
            raise ConfigError(f"split={split!r}: {len(self.split.source)} examples; pairs need an even number")

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        images, items, _, unreadable = embedder.read(self.split.source, key=self.split.key)
        if unreadable:
            raise ValueError(f"pairs need both of their images, and {len(unreadable)} cannot be read: {unreadable[0]}")
        z = images.astype(np.float64).reshape(len(images) // 2, 2, -1)
        t = embedder.texts([item["captions"][0] for item in items]).astype(np.float64).reshape(z.shape)
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
        return result | {"num_pairs": float(len(z))}


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("pe,pe->p", a, b)
