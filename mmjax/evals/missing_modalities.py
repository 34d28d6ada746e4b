"""How well a model does without some of its modalities: retrieval with each subset of them."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

from mmjax.evals import retrieval
from mmjax.evals.common.embedder import BoundEmbedder


class Evaluator(retrieval.Evaluator):
    """RSUM of ``retrieval`` when of each image only some modalities are there, as AMF is measured on faces.

    ``rsum_image+depth`` is that of images with these two alone; there is one for each subset but the empty one,
    ``2^M - 1`` of M modalities. ``rsum_mean`` is their mean, ``rsum_worst`` the least. Captions and the protocol are
    those of ``retrieval`` (Yang et al. 2020, doi:10.1145/3394171.3413538, who measure facial action units).

    It needs an image tower that takes some of its modalities: ``model.vision_cfg.fusion`` is ``gated`` or ``tokens``.
    """

    published = ()
    headline = ()
    needs_head: ClassVar[str | None] = "some_modalities"

    @classmethod
    def find(cls, root: Path) -> dict[str, dict[str, Any]]:
        """None: no published benchmark has several modalities of an image."""
        del root
        return {}

    @classmethod
    def metric_names(cls) -> Collection[str] | None:
        """None: the model's modalities tell."""
        return None

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        names = embedder.modalities
        subsets = [s for size in range(1, len(names) + 1) for s in itertools.combinations(names, size)]
        rsum = {"+".join(subset): self.measure(embedder, modalities=subset)["rsum"] for subset in subsets}
        summary = {"rsum_mean": sum(rsum.values()) / len(rsum), "rsum_worst": min(rsum.values())}
        return {f"rsum_{name}": value for name, value in rsum.items()} | summary
