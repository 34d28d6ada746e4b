"""Zero-shot classification: each class is the mean of its prompts' embeddings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.formats import classes
from mmjax.evals.common.base import Base, OpenSource, Published, open_split
from mmjax.evals.common.class_folders import find_classes
from mmjax.evals.common.classification import f1_macro, mean_average_precision, predict, worst_group
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.ranks import Ties, count_ranks


class Evaluator(Base):
    """Accuracy of the class whose prompts are nearest to the image.

    A class is normalize(mean over prompts of normalize(prompt embedding)) (Radford et al. 2021). ``acc@k`` are
    fractions of the images (``acc@5`` only for more than five classes), ``mean_per_class`` is the mean accuracy of the
    classes that occur, and ``f1_macro`` their mean F1. Ties are lost unless ``ties="optimistic"``. If the source names
    the classes ``held_out`` of training, there are also ``acc@1_seen``, ``acc@1_held_out`` and ``acc@1_harmonic``,
    their harmonic mean.

    If examples have several ``labels``, ``mAP`` is the mean over classes of the average precision, and ``acc@k`` counts
    any of an image's labels as right; images without a label count for ``mAP`` alone. With ``group`` there are also the
    accuracies of the worst group of images.
    """

    own_split: ClassVar[bool] = True
    any_split: ClassVar[bool] = True
    published = tuple(
        Published("imagenet1k", model, "open_clip, docs/openclip_results.csv", {"acc@1": percent / 100})
        for model, percent in (
            ("CLIP ViT-B/32 (OpenAI)", 63.3),
            ("CLIP ViT-B/32 (LAION-2B)", 66.6),
            ("CLIP ViT-B/32 (DataComp XL)", 69.2),
            ("CLIP ViT-B/16 (OpenAI)", 68.3),
            ("CLIP ViT-L/14 (OpenAI)", 75.5),
            ("SigLIP ViT-B/16 (WebLI)", 76.0),
        )
    )
    headline = ("acc@1", "acc@5", "mean_per_class", "mAP", "acc@1_harmonic", "acc@1_worst_group")
    over_all = ("acc@1", "acc@5", "mean_per_class", "f1_macro", "tie_gap", "mAP")

    def __init__(
        self,
        open_source: OpenSource,
        *,
        split: str = "zeroshot",
        source: dict[str, Any] | None = None,
        class_names: str | tuple[str, ...] | None = None,
        templates: str | tuple[str, ...] | None = None,
        dataset: str | None = None,
        group: int | None = None,
        ignored_groups: tuple[int, ...] = (),
        ties: Ties = "pessimistic",
    ):
        """Opens the split.

        Args:
            open_source: Opens a split of the experiment's data.
            split: A split with ``class_names``.
            source: Options for ``open_source``.
            class_names: Names of the classes in prompts, or a file of them; None: those of the source.
            templates: Prompts, with ``{}`` for the class name, or a file: one a line, or JSON (a list, or an object
                with a list of prompts for each class). None: those of the source, or ``a photo of a {}.``
            dataset: The data set's key in files that have names or templates of several, as CLIP_benchmark's
                ``en_classnames.json`` and ``en_zeroshot_classification_templates.json``.
            group: Which of the numbers in the examples' ``metadata`` is the group of an image.
            ignored_groups: Groups that cannot be the worst one.
            ties: How classes count that score as high as the true one.
        """
        self.split = open_split(open_source, split, source)
        own = self.split.source
        if class_names is None and not own.class_names:
            raise ConfigError(
                f"split={split!r}: the source has no class_names; set its label_column, or choose a split for "
                "classification"
            )
        named = None if class_names is None else classes.dataset_names(class_names, dataset=dataset)
        if named is not None and own.class_names and len(named) != len(own.class_names):
            raise ConfigError(
                f"class_names={class_names!r}: {len(named)} names for {len(own.class_names)} classes; name all of them"
            )
        self.class_names = named or list(own.class_names or ())
        if templates is None:
            made = classes.DEFAULT_TEMPLATES if own.templates is None else tuple(own.templates)
            self.prompts = classes.class_prompts(made, self.class_names)
        else:
            self.prompts = classes.class_prompts(templates, self.class_names, dataset=dataset)
        self.held_out = np.asarray(np.zeros(len(self.class_names)) if own.held_out is None else own.held_out, bool)
        if len(self.held_out) != len(self.class_names):
            raise ValueError(
                f"the source's held_out has {len(self.held_out)} values for {len(self.class_names)} classes"
            )
        self.group, self.ignored_groups, self.ties = group, ignored_groups, ties

    @classmethod
    def find(cls, root: Path) -> dict[str, dict[str, Any]]:
        """WebDatasets, folders of classes and TFDS below ``root`` that have classes."""
        return {name: {"split": split, "source": source} for name, split, source in find_classes(root)}

    @classmethod
    def metric_names(cls) -> Collection[str]:
        """All that it may give; some depend on the classes."""
        accuracies = ("acc@1", "acc@5", "mean_per_class", "f1_macro", "tie_gap", "mAP")
        subsets = ("acc@1_seen", "acc@1_held_out", "acc@1_harmonic", "acc@1_worst_group", "acc@5_worst_group")
        return (*accuracies, *subsets, "num_images", "num_classes", "num_groups", "num_truncated", "num_unreadable")

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        images, items, _, unreadable = embedder.read(self.split.source, key=self.split.key)
        prototypes = embedder.text_means(self.prompts)
        result = self._measure(embedder, images, items, prototypes)
        counts = {"num_images": len(images), "num_classes": len(prototypes), "num_unreadable": len(unreadable)}
        truncated = embedder.is_truncated([prompt for prompts in self.prompts for prompt in prompts])
        if truncated is not None:
            counts["num_truncated"] = int(truncated.sum())
        return result | {name: float(value) for name, value in counts.items()}

    def _measure(
        self, embedder: BoundEmbedder, images: np.ndarray, items: Sequence[dict[str, Any]], prototypes: np.ndarray
    ) -> dict[str, float]:
        labels = [self._labels(item, i) for i, item in enumerate(items)]
        several = any("labels" in item for item in items)
        result: dict[str, float] = {}
        if several:
            positive = np.zeros((len(images), len(prototypes)), bool)
            for row, own in enumerate(labels):
                positive[row, own] = True
            if not positive.any():
                raise ConfigError("none of the images has a label; check the source")
            result["mAP"] = mean_average_precision(images, prototypes, positive)
            labeled = positive.any(1)
            images, labels = images[labeled], [own for own in labels if own]
            items = [items[row] for row in np.flatnonzero(labeled).tolist()]
        table = np.full((len(labels), max(map(len, labels))), -1, np.int32)
        for line, own in zip(table, labels, strict=True):
            line[: len(own)] = own
        numbers = np.arange(len(prototypes), dtype=np.int32)
        ranks, _ = count_ranks(images, table, prototypes, numbers, row_sharding=embedder.row_sharding)
        rank = ranks.rank(self.ties)
        hits = {k: rank < k for k in (1, 5) if k == 1 or len(prototypes) > k}
        result |= {f"acc@{k}": float(hit.mean()) for k, hit in hits.items()}
        optimistic, pessimistic = (np.mean(ranks.rank(ties) < 1) for ties in ("optimistic", "pessimistic"))
        result["tie_gap"] = float(optimistic - pessimistic)
        if self.group is not None:
            groups = np.array([self._group(item, i) for i, item in enumerate(items)])
            for k, hit in hits.items():
                worst, result["num_groups"] = worst_group(hit, groups, ignored=self.ignored_groups)
                result[f"acc@{k}_worst_group"] = worst
            result["num_groups"] = float(result["num_groups"])
        return result if several else result | self._by_class(hits[1], table[:, 0], predict(images, prototypes))

    def _by_class(self, hit: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
        """What needs one label an image."""
        result = {"mean_per_class": float(np.mean([hit[labels == label].mean() for label in np.unique(labels)]))}
        result["f1_macro"] = f1_macro(labels, predictions)
        unseen = self.held_out[labels]
        if unseen.any() and not unseen.all():
            seen_acc, unseen_acc = float(hit[~unseen].mean()), float(hit[unseen].mean())
            total = seen_acc + unseen_acc
            result["acc@1_seen"], result["acc@1_held_out"] = seen_acc, unseen_acc
            result["acc@1_harmonic"] = 2 * seen_acc * unseen_acc / total if total else 0.0
        return result

    def _labels(self, item: dict[str, Any], index: int) -> list[int]:
        labels: list[Any] = item["labels"] if "labels" in item else [item.get("label")]
        for label in labels:
            if label is None or not 0 <= label < len(self.class_names):
                raise ValueError(
                    f"example {index}: label={label!r}; must be an index into the {len(self.class_names)} classes"
                )
        return [int(label) for label in labels]

    def _group(self, item: dict[str, Any], index: int) -> int:
        numbers = item.get("metadata") or []
        assert self.group is not None
        if not 0 <= self.group < len(numbers):
            raise ConfigError(
                f"group={self.group}: example {index} has {len(numbers)} numbers in its metadata; leave it out, or set "
                "metadata_key of the source"
            )
        return int(numbers[self.group])


def class_embeddings(
    encode: Callable[[Sequence[str]], np.ndarray], class_names: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """f32[C, E]: ``normalize(mean_t normalize(prompt_ct))``, a unit row for each class."""
    prompts = encode([template.replace("{}", name) for name in class_names for template in templates])
    mean = prompts.reshape(len(class_names), len(templates), -1).mean(1)
    return mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
