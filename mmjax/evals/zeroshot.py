"""Zero-shot classification: each class is the mean of its prompts' embeddings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.formats.classes import DEFAULT_TEMPLATES
from mmjax.evals.common.base import Base, OpenSource, open_split
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.ranks import Ties, count_ranks


class Evaluator(Base):
    """Accuracy of the class whose prompts are nearest to the image.

    A class is normalize(mean over templates of normalize(prompt embedding)) (Radford et al. 2021). ``acc@k`` are
    fractions of the images (``acc@5`` only for more than five classes), ``mean_per_class`` is the mean accuracy of the
    classes that occur. If the source names the classes ``held_out`` of training, there are also ``acc@1_seen``,
    ``acc@1_held_out`` and ``acc@1_harmonic``, their harmonic mean. Ties are lost unless ``ties="optimistic"``.
    """

    own_split: ClassVar[bool] = True
    any_split: ClassVar[bool] = True
    headline = ("acc@1", "acc@5", "mean_per_class", "acc@1_harmonic")

    def __init__(
        self,
        open_source: OpenSource,
        *,
        split: str = "zeroshot",
        source: dict[str, Any] | None = None,
        templates: tuple[str, ...] | None = None,
        ties: Ties = "pessimistic",
    ):
        """Opens the split.

        Args:
            open_source: Opens a split of the experiment's data.
            split: A split with ``class_names``.
            source: Options for ``open_source``.
            templates: Prompts, with ``{}`` for the class name; None: those of the source, or ``a photo of a {}.``
            ties: How classes count that score as high as the true one.
        """
        self.split = open_split(open_source, split, source)
        names = self.split.source.class_names
        if not names:
            raise ConfigError(f"split={split!r}: the source has no class_names; choose a split for classification")
        own = self.split.source.templates
        self.templates = tuple(templates or (DEFAULT_TEMPLATES if own is None else own))
        if not self.templates or any("{}" not in template for template in self.templates):
            raise ConfigError(
                f"templates={self.templates!r}: set at least one, each with {{}} where the class name goes"
            )
        self.class_names = list(names)
        held_out = self.split.source.held_out
        self.held_out = np.zeros(len(names), bool) if held_out is None else np.asarray(held_out, bool)
        if len(self.held_out) != len(names):
            raise ValueError(f"the source's held_out has {len(self.held_out)} values for {len(names)} classes")
        self.ties = ties

    @classmethod
    def metric_names(cls) -> Collection[str]:
        """All that it may give; some depend on the classes."""
        accuracies = ("acc@1", "acc@5", "mean_per_class", "tie_gap", "acc@1_seen", "acc@1_held_out", "acc@1_harmonic")
        return (*accuracies, "num_images", "num_classes", "num_unreadable")

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        images, items, _, unreadable = embedder.read(self.split.source, key=self.split.key)
        labels = np.asarray([self._label(item, i) for i, item in enumerate(items)], np.int32)
        classes = class_embeddings(embedder.texts, self.class_names, self.templates)
        class_ids = np.arange(len(classes), dtype=np.int32)
        ranks, _ = count_ranks(images, labels, classes, class_ids, row_sharding=embedder.row_sharding)
        rank = ranks.rank(self.ties)
        hit = rank < 1
        result = {"acc@1": float(hit.mean())}
        if len(classes) > 5:
            result["acc@5"] = float(np.mean(rank < 5))
        result["mean_per_class"] = float(np.mean([hit[labels == label].mean() for label in np.unique(labels)]))
        optimistic, pessimistic = (np.mean(ranks.rank(ties) < 1) for ties in ("optimistic", "pessimistic"))
        result["tie_gap"] = float(optimistic - pessimistic)
        unseen = self.held_out[labels]
        if unseen.any() and not unseen.all():
            seen_acc, unseen_acc = float(hit[~unseen].mean()), float(hit[unseen].mean())
            total = seen_acc + unseen_acc
            result["acc@1_seen"], result["acc@1_held_out"] = seen_acc, unseen_acc
            result["acc@1_harmonic"] = 2 * seen_acc * unseen_acc / total if total else 0.0
        counts = {"num_images": len(images), "num_classes": len(classes), "num_unreadable": len(unreadable)}
        return result | {name: float(value) for name, value in counts.items()}

    def _label(self, item: dict[str, Any], index: int) -> int:
        label = item.get("label")
        if label is None or not 0 <= label < len(self.class_names):
            raise ValueError(
                f"example {index}: label={label!r}; must be an index into the {len(self.class_names)} classes"
            )
        return int(label)


def class_embeddings(
    encode: Callable[[Sequence[str]], np.ndarray], class_names: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """f32[C, E]: ``normalize(mean_t normalize(prompt_ct))``, a unit row for each class."""
    prompts = encode([template.replace("{}", name) for name in class_names for template in templates])
    mean = prompts.reshape(len(class_names), len(templates), -1).mean(1)
    return mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
