"""Results of evaluations as lines of JSON: one for each metric of a model on a data set."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmjax
from mmjax.core.atomic import write_atomically
from mmjax.core.config import ConfigError, build
from mmjax.core.files import check_regular
from mmjax.evals.common.metric_names import load_evaluator
from mmjax.evals.common.suite import DataSet, prefixes

_COUNTS = ("num_pairs", "num_cues", "num_images", "num_examples")
"""What a metric is a mean over, the first that there is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One metric of one model on one data set.

    Attributes:
        model: What the user called it.
        weights: SHA-256 of its parameters.
        dataset: The data set's name.
        task: The evaluator.
        metric: The metric's name.
        value: NaN where it is not defined.
        count: How many images, captions or pairs it is over, if the evaluator says so; None for one over some of them.
        options: Of the evaluator, with the source.
        version: Of mmjax.
    """

    model: str
    weights: str
    dataset: str
    task: str
    metric: str
    value: float | None
    count: int | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    version: str = mmjax.__version__

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for all metrics of one measurement."""
        return _key(self.weights, self.dataset, self.task, self.options, self.version)


def make_results(data_set: DataSet, metrics: Mapping[str, float], *, model: str, weights: str) -> list[Result]:
    """The results of one measurement."""
    options = _plain(data_set.options)
    return [
        Result(
            model=model,
            weights=weights,
            dataset=data_set.name,
            task=data_set.task,
            metric=metric,
            value=value if math.isfinite(value) else None,
            count=_count(metric, metrics, over_all=load_evaluator(data_set.task).over_all),
            options=options,
        )
        for metric, value in metrics.items()
    ]


class ResultsFile:
    """A file of results, which is replaced as a whole, so that a killed process leaves whole measurements.

    Args:
        path: The file, which need not be there.
        flag: The flag that named it, for errors.
    """

    def __init__(self, path: Path, *, flag: str = "--output"):
        self._path, self._flag = path, flag
        self.results = read_results(path, flag=flag) if path.exists() else []

    def find(self, data_set: DataSet, *, weights: str) -> list[Result]:
        """The results of a measurement that is in the file; empty if it is not."""
        key = _key(weights, data_set.name, data_set.task, _plain(data_set.options), mmjax.__version__)
        return [result for result in self.results if result.key == key]

    def prepare(self) -> None:
        """Makes the file's folder; raises ConfigError if nothing can be written there, before hours of measuring."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error.strerror) from None
        if not os.access(self._path.parent, os.W_OK):
            raise self._unwritable("Permission denied")

    def add(self, results: Sequence[Result]) -> None:
        """Writes the results of a measurement, in place of earlier ones of the same."""
        replaced = {result.key for result in results}
        # Read again, because another process may have added others.
        there = read_results(self._path, flag=self._flag) if self._path.exists() else []
        self.results = [*(result for result in there if result.key not in replaced), *results]
        try:
            write_atomically(self._path, "".join(f"{_line(result)}\n" for result in self.results), sync=True)
        except OSError as error:
            raise self._unwritable(error.strerror) from None

    def _unwritable(self, reason: str | None) -> ConfigError:
        return ConfigError(f"{self._flag}={self._path}: cannot be written ({reason}); name another file")


def read_results(path: Path, *, flag: str) -> list[Result]:
    """The results of a file; raises ConfigError for any other file."""
    try:
        check_regular(path)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{flag}={path}: cannot be read ({error}); name a file that mmjax eval has written") from None
    results = []
    for number, line in enumerate(lines, 1):
        try:
            results.append(build(Result, json.loads(line), path=f"line {number}"))
        except (ValueError, RecursionError, AttributeError) as error:
            raise ConfigError(
                f"{flag}={path}: line {number} is no result of mmjax eval ({' '.join(str(error).split())}); name "
                "another file, or remove the line"
            ) from None
    return results


def summarize(results: Sequence[Result]) -> list[Result]:
    """The results, and after them what evaluators make of all data sets of a family, of each model by itself."""
    summaries = []
    for model, own in by_model(results).items():
        families: dict[str, dict[str, dict[str, float]]] = {}
        for (dataset, task, metric), result in own.items():
            if result.value is not None:
                families.setdefault(task, {}).setdefault(dataset, {})[metric] = result.value
        for task, metrics in families.items():
            weights = next(result.weights for key, result in own.items() if key[1] == task)
            data_set = DataSet(task, task, {})
            summaries += make_results(data_set, load_evaluator(task).summarize(metrics), model=model, weights=weights)
    return [*results, *summaries]


def name_results(results: Sequence[Result], *, data_sets: Iterable[DataSet] = ()) -> list[str]:
    """For each result its name: data set and metric, with the evaluator between them if the data set has several.

    Args:
        results: Of one model.
        data_sets: What was to be measured, if not all was.
    """
    asked = [(data_set.name, data_set.task) for data_set in data_sets]
    names = prefixes([*asked, *((result.dataset, result.task) for result in results)])
    return [f"{names[result.dataset, result.task]}/{result.metric}" for result in results]


def by_model(results: Iterable[Result]) -> dict[str, dict[tuple[str, str, str], Result]]:
    """For each model its results by data set, evaluator and metric; later ones replace earlier ones."""
    models: dict[str, dict[tuple[str, str, str], Result]] = {}
    for result in results:
        models.setdefault(result.model, {})[result.dataset, result.task, result.metric] = result
    return models


def _line(result: Result) -> str:
    return json.dumps(dataclasses.asdict(result), allow_nan=False)


def _key(weights: str, dataset: str, task: str, options: Mapping[str, Any], version: str) -> tuple[str, ...]:
    return weights, dataset, task, json.dumps(options, sort_keys=True), version


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they come back from JSON."""
    return json.loads(json.dumps(dict(options), default=str))


def _count(metric: str, metrics: Mapping[str, float], *, over_all: Collection[str] | None) -> int | None:
    if metric.startswith("num_") or (over_all is not None and metric not in over_all):
        return None
    names = ("num_captions",) if metric.startswith("text_to_image") else _COUNTS
    return next((int(metrics[name]) for name in names if name in metrics), None)
