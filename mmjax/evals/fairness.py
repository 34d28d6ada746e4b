"""How differently a model serves groups of images: recalls of each, equalized odds, skew of search results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mmjax.core.config import ConfigError, Ge
from mmjax.core.groups import UNKNOWN, group_number
from mmjax.data.formats import classes
from mmjax.evals.common.base import Base, OpenSource, open_split
from mmjax.evals.common.classification import predict
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.ranks import count_ranks


class Evaluator(Base):
    """Metrics by group; images whose group is not known take no part.

    ``recall@1_GROUP`` is the fraction of a group's images whose best text among all captions of the split is their own,
    with equal captions as one; where captions are prompts of classes it is the accuracy.
    ``recall@1_worst_group`` is the lowest, ``recall@1_gap`` the highest minus the lowest.

    ``max_skew@k`` is the mean over queries of ``max_g log(p_g / q_g)``, with p_g the part of group g among the k best
    images of the query and q_g that among all (Geyik et al. 2019, arXiv:1905.01989): 0 if every search shows groups as
    the split has them. Queries are the prompts of the classes, or without classes the captions.

    With classes there is ``equalized_odds_gap``, the largest difference between groups in the fraction of images of a
    class that are taken for it, or of images of other classes that are (Hardt et al. 2016, arXiv:1610.02413), over all
    classes.
    """

    def __init__(
        self,
        open_source: OpenSource,
        *,
        split: str = "val",
        source: dict[str, Any] | None = None,
        groups: tuple[str, ...] = ("group",),
        k: Annotated[int, Ge(1)] = 10,
    ):
        """Opens the split.

        Args:
            open_source: Opens a split of the experiment's data.
            split: A split whose examples have groups.
            source: Options for ``open_source``.
            groups: Fields of the examples that make up their group; of several it is their combination.
            k: How many images of a search count for its skew.
        """
        self.split = open_split(open_source, split, source)
        self.groups, self.k = groups, k

    @classmethod
    def find(cls, root: Path) -> dict[str, dict[str, Any]]:
        """FairFace and UTKFace below ``root``: gender by race, and race by gender."""
        data_sets: dict[str, dict[str, Any]] = {}
        for folder in sorted(child for child in root.iterdir() if child.is_dir()):
            if (folder / "fairface_label_val.csv").exists() or folder.name.lower().startswith("utkface"):
                for label, group in (("gender", "race"), ("race", "gender")):
                    source = {"name": "faces", "path": str(folder), "label": label}
                    data_sets[f"{folder.name}/{label}"] = {"split": "val", "source": source, "groups": (group,)}
        return data_sets

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        images, items, *_ = embedder.read(self.split.source, key=self.split.key)
        names = [self._name(item) for item in items]
        known = np.array([name is not None for name in names])
        if len(set(names) - {None}) < 2:
            raise ConfigError(
                f"groups={self.groups}: the split has fewer than two groups; name fields of its examples that tell "
                "them apart"
            )
        group = np.array([name or "" for name in names])
        result = self._recalls(embedder, images, items, group, known)
        queries, own = self._queries(embedder, items), images[known]
        result[f"max_skew@{self.k}"] = max_skew(own, queries, group[known], k=self.k)
        if self.split.source.class_names and all("label" in item for item in items):
            labels = np.array([item["label"] for item in items])
            result["equalized_odds_gap"] = equalized_odds_gap(labels[known], predict(own, queries), group[known])
        return result | {"num_groups": float(len(set(group[known]))), "num_unknown": float(np.sum(~known))}

    def _name(self, item: dict[str, Any]) -> str | None:
        """Of an example's group, in the letters of a metric; None if it is not known."""
        values = [item.get(field) for field in self.groups]
        if group_number(*values) == UNKNOWN:
            return None
        return re.sub(r"[^\w.-]+", "_", "_".join(map(str, values)))

    def _recalls(
        self, embedder: BoundEmbedder, images: np.ndarray, items: Any, group: np.ndarray, known: np.ndarray
    ) -> dict[str, float]:
        ids = np.array([item["id"] for item in items])
        numbers = np.unique(ids, return_inverse=True)[1].astype(np.int32)
        row_of = {
            text: row for row, text in enumerate(dict.fromkeys(text for item in items for text in item["captions"]))
        }
        own = [set[int]() for _ in range(numbers.max() + 1)]
        for number, item in zip(numbers, items, strict=True):
            own[number] |= {row_of[text] for text in item["captions"]}
        texts, widest = embedder.texts(list(row_of)), max(map(len, own))
        ids = np.array([[*sorted(rows), *[-1] * (widest - len(rows))] for rows in own], np.int32)[numbers]
        ranks, _ = count_ranks(
            images, ids, texts, np.arange(len(texts), dtype=np.int32), row_sharding=embedder.row_sharding
        )
        hit = ranks.rank("pessimistic") < 1
        recalls = {name: float(hit[known & (group == name)].mean()) for name in sorted(set(group[known]))}
        lowest, highest = min(recalls.values()), max(recalls.values())
        return {f"recall@1_{name}": recall for name, recall in recalls.items()} | {
            "recall@1_worst_group": lowest,
            "recall@1_gap": highest - lowest,
        }

    def _queries(self, embedder: BoundEmbedder, items: Any) -> np.ndarray:
        """f32[q, E]: the classes, or all captions."""
        source = self.split.source
        if not source.class_names:
            return embedder.texts([text for item in items for text in item["captions"]])
        templates = classes.DEFAULT_TEMPLATES if source.templates is None else tuple(source.templates)
        return embedder.text_means(classes.class_prompts(templates, list(source.class_names)))


def equalized_odds_gap(labels: np.ndarray, predictions: np.ndarray, groups: np.ndarray) -> float:
    """The largest difference between groups in the rate of true, or of false positives, over all classes.

    >>> equalized_odds_gap(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), np.array(["f", "m", "f", "m"]))
    1.0
    """
    gap = 0.0
    for label in np.unique(labels):
        for of_class in (labels == label, labels != label):
            fractions = [
                np.mean(predictions[of_class & (groups == group)] == label)
                for group in np.unique(groups)
                if np.any(of_class & (groups == group))
            ]
            gap = max(gap, float(max(fractions) - min(fractions)) if fractions else 0.0)
    return gap


def max_skew(images: np.ndarray, queries: np.ndarray, groups: np.ndarray, *, k: int) -> float:
    """The mean over queries of the largest ``log(p_g / q_g)``; of images that score the same the first count.

    Args:
        images: f32[n, E].
        queries: f32[q, E].
        groups: str[n].
        k: How many images of each query count; all if there are fewer.
    """
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    skews = []
    for query in queries:
        best = np.argsort(-(images @ query), kind="stable")[:k]
        fractions = np.bincount(group[best], minlength=len(counts)) / len(best)
        present = fractions > 0
        skews.append(np.log(fractions[present] / (counts[present] / len(groups))).max())
    return float(np.mean(skews))
