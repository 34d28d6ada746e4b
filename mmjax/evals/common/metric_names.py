"""The names under which metrics of an evaluation appear."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mmjax.core import plugins
from mmjax.core.config import ConfigError, nearest

FOLDER = "mmjax.evals"


def load_evaluator(task: str) -> Any:
    """The class of an evaluator."""
    return plugins.load_class(FOLDER, "Evaluator", task, path="eval.tasks")


def tasks_of_splits(tasks: Sequence[str], splits: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each split with its tasks; tasks that have a split of their own run once, with the first."""
    for number, split in enumerate(splits):
        yield split, [task for task in tasks if number == 0 or not load_evaluator(task).own_split]


def prefix_of(task: str, split: str) -> str:
    """What stands before a metric: retrieval's carry the split alone, others their own name too."""
    return split if task == "retrieval" else task if load_evaluator(task).own_split else f"{split}/{task}"


def check_metric(
    metric: str, *, tasks: Sequence[str], splits: Sequence[str], path: str, suite: Iterable[tuple[str, str]] = ()
) -> None:
    """Raises ConfigError if an evaluation of ``tasks`` on ``splits``, and of ``suite``, cannot give ``metric``.

    Args:
        metric: Such as ``val/rsum``.
        tasks: Names of evaluators.
        splits: Names of splits.
        path: The key or flag that an error names.
        suite: What stands before the metrics of each benchmark, and its evaluator.
    """
    known: list[str] = []
    own = [(prefix_of(task, split), task) for split, each in tasks_of_splits(tasks, splits) for task in each]
    for prefix, task in (*own, *suite):
        names = load_evaluator(task).metric_names()
        if names is None and metric.startswith(f"{prefix}/"):
            return  # only the examples tell
        known += [f"{prefix}/{name}" for name in names or ("…",)]
    if not known:
        raise ConfigError(f"{path}={metric!r}: nothing is measured; name evaluators in eval.tasks and eval.final_tasks")
    if metric not in known:
        raise ConfigError(f"{path}={metric!r}: no evaluation gives such a metric; {nearest(metric, known)}")
