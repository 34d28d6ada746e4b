"""A whole comparison: its runs are trained, then measured against each other, and the report is written."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from mmjax.commands.common.options import without_nan
from mmjax.commands.comparing.recipes import Recipe
from mmjax.commands.comparing.results import FILE, collect
from mmjax.commands.comparing.runs import ComparedRun, check, list_runs, train_all
from mmjax.core.atomic import write_atomically
from mmjax.core.config import ConfigError
from mmjax.core.files import read_json_object
from mmjax.data.source import Source, Subset
from mmjax.report import comparison as report
from mmjax.train import data as train_data
from mmjax.weights.config import InitConfig

STEP_TIMES = "step_times.json"
RANK_CHANGES = "rank_changes.json"
RANKED_SEEDS = 3
"""The first seeds of each recipe, whose captions are ranked: each run more is two towers over up to 1,000 images."""

_SUFFIXES = {"k": 1000, "M": 1_000_000}

logger = logging.getLogger(__name__)


def compare(
    recipes: Sequence[Recipe],
    *,
    seeds: Sequence[int],
    sizes: Sequence[str],
    metrics: Sequence[str],
    jobs: int,
    workdir: Path,
    detect: float | None,
    time_steps: int,
    examples: int,
) -> dict[str, Any]:
    """Trains what has not been trained, writes the report, and returns what stands in ``comparison.json``.

    Args:
        recipes: The first is the baseline.
        seeds: Of each recipe.
        sizes: Of the training data, as words (see ``parse_sizes``); if empty, that of each recipe.
        metrics: Final metrics; the headline first.
        jobs: Runs at a time.
        workdir: The folder of all runs.
        detect: A difference, for how many seeds it needs.
        time_steps: Timed steps of each recipe.
        examples: Captions whose ranks changed most.
    """
    check(list_runs(recipes, seeds=seeds[-1:]), metrics=metrics)  # before the data is opened, which may take long
    counts: dict[float | None, int] = {}
    if sizes:
        source = train_data.open_split(
            ComparedRun(recipe=recipes[0], seed=seeds[0], fraction=1.0).experiment(), "train"
        )
        counts = {fraction: _count(source, fraction) for fraction in parse_sizes(sizes, examples=len(source))}
    runs = list_runs(recipes, seeds=seeds, fractions=list(counts) or [None])
    train_all(runs, jobs=jobs, workdir=workdir)
    results = collect(runs, workdir=workdir, metrics=metrics, detect=detect, examples=counts)
    key = [recipes[0].spec, *([recipe.name, *recipe.common, *recipe.own] for recipe in recipes)]
    largest = runs[-1].fraction
    pairs = {r.name: [run for run in runs if run.recipe is r and run.fraction == largest] for r in recipes}
    if time_steps:
        results["step_times"] = _cached(
            workdir / STEP_TIMES, [*key, largest, time_steps], lambda: _time_steps(pairs, time_steps)
        )
    if examples:
        results["rank_changes"] = _cached(
            workdir / RANK_CHANGES,
            [*key, largest, *seeds[:RANKED_SEEDS], examples],
            lambda: _find_changes({name: own[:RANKED_SEEDS] for name, own in pairs.items()}, workdir, examples),
        )
    results = json.loads(json.dumps(without_nan(results)))
    write_atomically(workdir / FILE, json.dumps(results, indent=1) + "\n")
    logger.info(f"report: {report.write(workdir, results)}")
    return results


def parse_sizes(texts: Sequence[str], *, examples: int) -> list[float]:
    """Fractions in ascending order, from words such as ``0.25``, ``1`` (all), ``500`` or ``2k`` (examples)."""
    fractions = set()
    for word in texts:
        number, factor = (word[:-1], _SUFFIXES[word[-1]]) if word[-1:] in _SUFFIXES else (word, 1)
        try:
            value = float(number) * factor
        except ValueError:
            value = math.nan
        if 0 < value <= 1 and factor == 1:
            fractions.add(value)
        elif value == int(value if math.isfinite(value) else 0) and value > 0:
            fractions.add(fraction_of(int(value), examples))
        else:
            raise ConfigError(
                f"--fractions={word}: expected a fraction up to 1, or a number of examples such as 500 or 2k"
            )
    return sorted(fractions)


def fraction_of(count: int, examples: int) -> float:
    """The shortest decimal f with floor(f · examples) = count."""
    if count > examples:
        raise ConfigError(f"--fractions={count}: the training data has {examples:,} examples; name fewer")
    digits = 1
    while (ticks := -(-count * 10**digits // examples)) * examples >= (count + 1) * 10**digits:
        digits += 1
    return float(Fraction(ticks, 10**digits))


def _count(source: Source, fraction: float) -> int:
    try:
        return len(source if fraction == 1 else Subset(source, fraction))
    except ConfigError as error:
        raise ConfigError(f"--fractions: {error}") from None


def _cached(path: Path, key: Any, make: Callable[[], Any]) -> Any:
    """The value that was made for the same key before, else a new one, which is kept."""
    key = json.loads(json.dumps(key))
    try:
        stored = read_json_object(path)
        if stored.get("key") == key:
            return stored["value"]
    except (OSError, ValueError):
        pass
    value = make()
    write_atomically(path, json.dumps({"key": key, "value": value}) + "\n")
    return value


def _time_steps(pairs: dict[str, list[ComparedRun]], repeats: int) -> list[dict[str, Any]]:
    from mmjax.commands.common.step_timing import compare_steps

    logger.info(f"timing the steps of {len(pairs)} recipes")
    # What the weights are changes no time.
    experiments = [(name, dataclasses.replace(runs[0].experiment(), init=InitConfig())) for name, runs in pairs.items()]
    return compare_steps(experiments, repeats=repeats)


def _find_changes(pairs: dict[str, list[ComparedRun]], workdir: Path, count: int) -> dict[str, Any]:
    from mmjax.commands.comparing.rank_changes import find_changes

    logger.info(f"looking for what changed in retrieval, in {sum(map(len, pairs.values()))} runs")
    return find_changes(pairs, workdir=workdir, count=count)
