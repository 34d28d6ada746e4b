"""Linear probe and few-shot: how well a linear classifier on the image embeddings does."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from mmjax.core.config import ConfigError, Ge, Gt
from mmjax.evals.common.base import Base, OpenSource, Split, open_split
from mmjax.evals.common.class_folders import find_classes
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.linear_models import GRID, fit_logistic, fit_ridge

logger = logging.getLogger(__name__)

SOLVERS = {"ridge": fit_ridge, "logistic": fit_logistic}


class Evaluator(Base):
    """Accuracy of a linear classifier that is trained on image embeddings (Radford et al. 2021, section 3.2).

    ``acc@1`` and ``mean_per_class`` are of a classifier on all training images, and ``acc@1_K_shot`` of ridge
    regression on K images of each class, the mean over ``repeats`` draws, with their standard deviation
    ``acc@1_K_shot_sd``. K counts only if every class has as many training images. ``l2`` is the penalty, chosen on the
    training images alone.
    """

    own_split: ClassVar[bool] = True
    any_split: ClassVar[bool] = True

    def __init__(
        self,
        open_source: OpenSource,
        *,
        split: str = "zeroshot",
        train_split: str | None = None,
        source: dict[str, Any] | None = None,
        solver: Literal["ridge", "logistic"] = "ridge",
        penalties: tuple[Annotated[float, Gt(0)], ...] = GRID,
        shots: tuple[Annotated[int, Ge(1)], ...] = (1, 4, 16),
        repeats: Annotated[int, Ge(1)] = 3,
        seed: Annotated[int, Ge(0)] = 0,
    ):
        """Opens the splits.

        Args:
            open_source: Opens a split of the experiment's data.
            split: A split whose examples have a ``label``.
            train_split: The split to train on. None: every other image of each class of ``split``, and the rest is
                measured.
            source: Options for ``open_source``, of both splits.
            solver: ``ridge`` regression in closed form, or ``logistic`` regression by L-BFGS, as in the paper.
            penalties: Values of ``l2`` that are tried (``mmjax.evals.common.linear_models``).
            shots: Numbers of training images a class.
            repeats: Draws of training images for each of ``shots``.
            seed: Of the draws.
        """
        self.split = open_split(open_source, split, source)
        self.train: Split | None = None if train_split is None else open_split(open_source, train_split, source)
        for opened in filter(None, (self.split, self.train)):
            if "label" not in opened.source.first_readable():
                name = split if opened is self.split else train_split
                raise ConfigError(f"split={name!r}: the examples have no label; choose a split for classification")
        if not penalties:
            raise ConfigError("penalties=(): name at least one, or leave it out")
        self.solver, self.penalties, self.shots, self.repeats, self.seed = solver, penalties, shots, repeats, seed

    @classmethod
    def find(cls, root: Path) -> dict[str, dict[str, Any]]:
        """Data sets of classification below ``root``, as of ``zeroshot``, that have a split ``train``."""
        data_sets = {}
        for name, split, source in find_classes(root, prompts=False):
            if (Path(source["path"]) / "train").is_dir():
                data_sets[name] = {"split": split, "train_split": "train", "source": source}
            else:
                logger.info("linear_probe: %s has no folder train beside %s, and is left out", source["path"], split)
        return data_sets

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        x, y = _read(embedder, self.split)
        if self.train is None:
            trains = _every_other(y)
            train_x, train_y, x, y = x[trains], y[trains], x[~trains], y[~trains]
        else:
            train_x, train_y = _read(embedder, self.train)
        names = np.unique(train_y)
        if len(names) < 2 or not len(y):
            raise ConfigError(f"a probe needs two classes and images to measure; there are {len(names)} and {len(y)}")
        # A class without a training image cannot be predicted; its images are lost.
        numbers = np.searchsorted(names, train_y)
        model = SOLVERS[self.solver](train_x, numbers, len(names), grid=self.penalties)
        hit = names[model.predict(x)] == y
        result = {"acc@1": float(hit.mean())}
        result["mean_per_class"] = float(np.mean([hit[y == label].mean() for label in np.unique(y)]))
        result["l2"] = model.l2
        most = np.bincount(numbers).min()
        for k in (k for k in self.shots if k <= most):
            accuracies = []
            for repeat in range(self.repeats):
                rows = _draw(numbers, k, np.random.default_rng((self.seed, k, repeat)))
                few = fit_ridge(train_x[rows], numbers[rows], len(names), grid=self.penalties)
                accuracies.append(np.mean(names[few.predict(x)] == y))
            result[f"acc@1_{k}_shot"] = float(np.mean(accuracies))
            if self.repeats > 1:
                result[f"acc@1_{k}_shot_sd"] = float(np.std(accuracies, ddof=1))
        counts = {"num_images": len(y), "num_train": len(train_y), "num_classes": len(names)}
        return result | {name: float(value) for name, value in counts.items()}


def _read(embedder: BoundEmbedder, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings f32[n, E] and labels i64[n] of the images that have a label."""
    images, items, *_ = embedder.read(split.source, key=split.key)
    labels = np.array([-1 if (label := item.get("label")) is None else label for item in items])
    return images[labels >= 0], labels[labels >= 0]


def _every_other(labels: np.ndarray) -> np.ndarray:
    """bool[n]: the first, third, … image of each class."""
    order = np.argsort(labels, kind="stable")
    start = np.searchsorted(labels[order], labels[order])
    result = np.zeros(len(labels), bool)
    result[order] = (np.arange(len(labels)) - start) % 2 == 0
    return result


def _draw(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` rows of each class."""
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    start = np.searchsorted(labels[order], labels[order])
    return order[np.arange(len(labels)) - start < count]
