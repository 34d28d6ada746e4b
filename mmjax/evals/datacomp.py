"""DataComp: 38 tasks, each by its own metric, and their averages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mmjax.core.config import choose
from mmjax.evals import retrieval, winogavil, zeroshot
from mmjax.evals.common.base import Base, OpenSource, Published
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.folders import find_webdatasets

DIST_SHIFT, VTAB, RETRIEVAL = "dist_shift", "vtab", "retrieval"
_OTHER_REGION = 5  # of FMoW, which is no region


class Task(NamedTuple):
    """One task: its metric, the average that it is in besides that of all, and what measures it."""

    metric: str = "acc@1"
    average: str = ""
    evaluator: type[Base] = zeroshot.Evaluator
    options: Mapping[str, Any] = {}
    metadata: bool = False  # the groups of images are in files beside the labels


def _worst(metric: str, **options: Any) -> Task:
    return Task(f"{metric}_worst_group", options={"group": 0, **options}, metadata=True)


_PER_CLASS = "mean_per_class"
_CAPTIONS = Task("mean_recall@1", RETRIEVAL, retrieval.Evaluator, {"max_captions": 5, "merge_repeats": False})

TASKS = {
    "vtab-caltech101": Task(_PER_CLASS, VTAB),
    "cifar10": Task(),
    "vtab-cifar100": Task(average=VTAB),
    "vtab-clevr_count_all": Task(average=VTAB),
    "vtab-clevr_closest_object_distance": Task(average=VTAB),
    "country211": Task(),
    "vtab-dtd": Task(average=VTAB),
    "vtab-eurosat": Task(average=VTAB),
    "fgvc_aircraft": Task(_PER_CLASS),
    "food101": Task(),
    "gtsrb": Task(),
    "imagenet1k": Task(),
    "imagenet_sketch": Task(average=DIST_SHIFT),
    "imagenetv2": Task(average=DIST_SHIFT),
    "imagenet-a": Task(average=DIST_SHIFT),
    "imagenet-o": Task(average=DIST_SHIFT),
    "imagenet-r": Task(average=DIST_SHIFT),
    "vtab-kitti_closest_vehicle_distance": Task(average=VTAB),
    "mnist": Task(),
    "objectnet": Task(average=DIST_SHIFT),
    "vtab-flowers": Task(_PER_CLASS, VTAB),
    "vtab-pets": Task(_PER_CLASS, VTAB),
    "voc2007": Task(),
    "vtab-pcam": Task(average=VTAB),
    "renderedsst2": Task(),
    "vtab-resisc45": Task(average=VTAB),
    "cars": Task(),
    "stl10": Task(),
    "sun397": Task(average=VTAB),
    "vtab-svhn": Task(average=VTAB),
    "flickr30k": _CAPTIONS,
    "coco": _CAPTIONS,
    "winogavil": Task("jaccard_10-12", RETRIEVAL, winogavil.Evaluator),
    "wilds-iwildcam": Task("f1_macro"),
    "wilds-camelyon17": Task(),
    "wilds-fmow": _worst("acc@1", ignored_groups=(_OTHER_REGION,)),
    "dollar_street": _worst("acc@5"),
    "geode": _worst("acc@1"),
}
"""By the folder's name without ``wds_`` and ``_test``."""

_SOURCE = "open_clip, docs/openclip_results.csv"


def _published(model: str, average: float) -> Published:
    return Published("datacomp", model, _SOURCE, {f"average@{len(TASKS)}_of_{len(TASKS)}": average / 100})


class Evaluator(Base):
    """The evaluation suite of DataComp (Gadre et al. 2023, arXiv:2304.14108).

    ``main`` is a task's own metric: accuracy, mean accuracy over classes, macro F1, that of the worst group of images,
    the mean of R@1 in both directions (at most 5 captions an image), or the Jaccard index. All other metrics are those
    of ``zeroshot``, ``retrieval`` or ``winogavil``. Over the tasks that are there, ``average@K_of_38`` is the mean of
    ``main``, and ``dist_shift``, ``vtab`` and ``retrieval`` are means over groups of tasks. FairFace and UTKFace, which
    are in no average, are left out.
    """

    own_split: ClassVar[bool] = True
    any_split: ClassVar[bool] = True
    headline = ("main",)
    published = (
        _published("CLIP ViT-B/32 (OpenAI)", 52.5),
        _published("CLIP ViT-B/32 (LAION-2B)", 56.9),
        _published("CLIP ViT-B/32 (DataComp XL)", 58.0),
        _published("CLIP ViT-B/16 (OpenAI)", 56.3),
        _published("CLIP ViT-L/14 (OpenAI)", 61.7),
        _published("SigLIP ViT-B/16 (WebLI)", 62.3),
        _published("CLIP ViT-B/32 (DataComp medium)", 32.8),
        _published("CLIP ViT-B/32 (DataComp small)", 14.5),
    )

    def __init__(
        self,
        open_source: OpenSource,
        *,
        split: str = "zeroshot",
        source: dict[str, Any] | None = None,
        task: str = "imagenet1k",
    ):
        """Opens one task.

        Args:
            open_source: Opens a split of the experiment's data.
            split: A split for classification, or for what ``task`` is.
            source: Options for ``open_source``.
            task: The task, which has its metric.
        """
        self.task = TASKS[choose(task, TASKS, path="task")]
        evaluator: Any = self.task.evaluator
        self.evaluator = evaluator(open_source, split=split, source=source, **self.task.options)

    @classmethod
    def find(cls, root: Path) -> dict[str, dict[str, Any]]:
        """The tasks below ``root``: ``wds_NAME_test/`` of CLIP_benchmark, Flickr30k, COCO and WinoGAViL."""
        there: dict[str, dict[str, Any]] = {}
        for data in find_webdatasets(root):
            if data.name in TASKS and data.kind != "retrieval":
                metadata = {"metadata_key": "npy"} if TASKS[data.name].metadata else {}
                source = {"name": "webdataset", "path": str(data.path), **metadata}
                there[data.name] = {"split": "test", "source": source}
        for evaluator in (retrieval.Evaluator, winogavil.Evaluator):
            for name, options in evaluator.find(root).items():
                if name in TASKS:
                    there[name] = {key: options[key] for key in ("split", "source") if key in options}
        return {name: {"split": "test", **there[name], "task": name} for name in TASKS if name in there}

    @classmethod
    def summarize(cls, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Averages over the tasks that were measured; their names say how many these are."""
        main = {name: own["main"] for name, own in metrics.items() if name in TASKS and "main" in own}
        result = {"imagenet1k": main["imagenet1k"]} if "imagenet1k" in main else {}
        groups = {
            group: [name for name, task in TASKS.items() if task.average == group]
            for group in (DIST_SHIFT, VTAB, RETRIEVAL)
        }
        for group, names in {**groups, "average": list(TASKS)}.items():
            values = [main[name] for name in names if name in main]
            if values:
                result[f"{group}@{len(values)}_of_{len(names)}"] = float(np.mean(values))
        return result

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        metrics: dict[str, float] = self.evaluator(embedder)
        return {"main": metrics[self.task.metric], **metrics} if self.task.metric in metrics else metrics
