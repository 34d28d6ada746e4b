"""Visual entailment: whether a statement follows from a picture, contradicts it, or neither."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

from mmjax.evals import vqa
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.folders import annotated_files, first_of
from mmjax.evals.vqa import accuracies

LABELS = ("contradiction", "neutral", "entailment")


class Evaluator(vqa.Evaluator):
    """Accuracy on SNLI-VE (Xie et al. 2019, arXiv:1901.06706), and on any examples with one of its three answers.

    ``accuracy_LABEL`` is that of the statements with this label. ``accuracy_other_image`` shows another picture to each
    statement: what its words alone are good for, which on SNLI-VE is much. It needs ``model.fusion.answers=3``.
    """

    needs_answers: ClassVar[tuple[str, ...]] = LABELS
    headline: ClassVar[Collection[str]] = (
        "accuracy",
        *(f"accuracy_{label}" for label in reversed(LABELS)),
        "accuracy_other_image",
        "num_unreadable",
    )

    @classmethod
    def find(cls, root: Path) -> dict[str, dict[str, Any]]:
        """SNLI-VE's test split below ``root``: ``snli_ve/snli_ve_test.jsonl`` and the images of Flickr30k."""
        path = first_of(root, ("snli_ve/snli_ve_test.jsonl", "SNLI-VE/snli_ve_test.jsonl"))
        images = first_of(root, ("flickr30k/flickr30k-images", "flickr30k/images", "flickr30k/flickr30k_images"))
        options = annotated_files("questions", path, images, expected="flickr30k/flickr30k-images")
        return {"snli_ve": {"split": "test", **options}} if options else {}

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        asked = self.ask(embedder)
        by_kind = {f"accuracy_{kind}": value for kind, value in asked.by("kind").items()}
        by_label = {f"accuracy_{label}": value for label, value in asked.by("answer").items()}
        return accuracies(asked) | by_kind | by_label | asked.counts()
