"""Reasoning over two pictures: whether a statement is true of both together."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmjax.data.sources.nlvr2 import LABELS
from mmjax.evals import vqa
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.folders import annotated_files, first_of
from mmjax.evals.vqa import accuracies

_SPLITS = {"nlvr2_dev": "dev", "nlvr2_test": "test1"}


class Evaluator(vqa.Evaluator):
    """Accuracy and consistency on NLVR2 (Suhr et al. 2019, arXiv:1811.00491), and on other statements about pairs.

    ``consistency`` is the fraction of the sentences that are judged right for all of their pairs, which the field
    ``statement`` names. ``accuracy_other_image`` shows another pair to each sentence; every sentence of NLVR2 is true
    of some pairs and false of others, so that words alone are good for a half. ``accuracy_KIND`` is that of a ``kind``.

    It needs a model with ``model.fusion.images=2`` and ``model.fusion.answers=2``.
    """

    needs_head: ClassVar[str | None] = "answer_pair"
    needs_answers: ClassVar[tuple[str, ...]] = LABELS
    headline: ClassVar[Collection[str]] = ("accuracy", "consistency", "accuracy_other_image", "num_unreadable")

    @classmethod
    def find(cls, root: Path) -> dict[str, dict[str, Any]]:
        """NLVR2 below ``root``: ``nlvr2/data/dev.json`` and ``test1.json``, and pictures in ``nlvr2/dev`` and so on."""
        data_sets = {}
        for name, split in _SPLITS.items():
            path = first_of(root, (f"nlvr2/data/{split}.json", f"nlvr2/{split}.json"))
            images = first_of(root, ("nlvr2", "nlvr2/images"), holding=split)
            if options := annotated_files("nlvr2", path, images, expected=f"nlvr2/{split}"):
                data_sets[name] = {"split": split, **options}
        return data_sets

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        asked = self.ask(embedder)
        right = asked.by("statement").values()
        consistency = {"consistency": float(np.mean([one == 1 for one in right]))} if right else {}
        by_kind = {f"accuracy_{kind}": value for kind, value in asked.by("kind").items()}
        return accuracies(asked) | consistency | by_kind | asked.counts()
