"""``comparison.json``: all that a comparison has measured and what follows from it, as its report shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax import __version__
from mmjax.commands.comparing import statistics, verdicts
from mmjax.commands.comparing.recipes import Recipe
from mmjax.commands.comparing.runs import FINAL, ComparedRun
from mmjax.core.config import ConfigError, choose
from mmjax.core.files import read_json_object
from mmjax.report.chart import thin
from mmjax.runs.metrics_file import read_metrics

FILE = "comparison.json"
DEFAULT_METRICS = ("rsum", "acc@1", "macro", "group_score")
"""The last parts of the metrics that are compared if none is named: one of each evaluator."""

BUDGET = ("steps", "batch_size", "data.source", "data.train")
"""Keys that say how much a run sees of which data; a recipe that changes one is not compared on equal terms."""

CURVE_POINTS = 100
Record = dict[str, float]


def collect(
    runs: Sequence[ComparedRun],
    *,
    workdir: Path,
    metrics: Sequence[str],
    detect: float | None,
    examples: Mapping[float | None, int],
) -> dict[str, Any]:
    """Everything about finished runs but step times and pictures.

    Args:
        runs: All runs; the first recipe is the baseline.
        workdir: The folder of the comparison.
        metrics: Final metrics, the first of which is the headline; if empty, ``DEFAULT_METRICS``.
        detect: The difference of the headline metric that the answer "how many seeds" is for; the measured one if None.
        examples: The training examples of each fraction, as far as they are known.
    """
    recipes = list({run.recipe.name: run.recipe for run in runs}.values())
    fractions = list(dict.fromkeys(run.fraction for run in runs))
    seeds = list(dict.fromkeys(run.seed for run in runs))
    records = {run: read_metrics(run.folder(workdir)) for run in runs}
    final = {run: _final_metrics(run, records[run], workdir) for run in runs}
    metrics = _choose_metrics(final, metrics)
    rows = []
    for fraction in fractions:
        for metric in metrics:
            values = {
                recipe.name: [final[run][metric] for run in runs if run.recipe is recipe and run.fraction == fraction]
                for recipe in recipes
            }
            rows += _rows(values, fraction=fraction, metric=metric)
    sizes = {fraction: size_label(fraction, examples.get(fraction)) for fraction in fractions}
    tests = _correct(rows)
    for row in rows:
        if "difference" in row:
            _judge(row, detect=detect if row["metric"] == metrics[0] else None)
            size = sizes[row["fraction"]] if len(fractions) > 1 else ""
            row["sentence"] = verdicts.sentence(row, baseline=recipes[0].name, tests=tests, size=size)
    rankings = []
    for fraction in fractions:
        headline = [row for row in rows if row["fraction"] == fraction and row["metric"] == metrics[0]]
        ranking = verdicts.rank_recipes(headline, baseline=recipes[0].name)
        size = sizes[fraction] if len(fractions) > 1 else ""
        line = verdicts.ranking_sentence(ranking, metric=metrics[0], baseline=recipes[0].name, size=size)
        rankings.append({"fraction": fraction, "order": ranking, "sentence": line})
    return {
        "version": __version__,
        "config": recipes[0].spec,
        "overrides": [list(pair) for pair in recipes[0].common],
        "baseline": recipes[0].name,
        "seeds": seeds,
        "metrics": list(metrics),
        "tests": tests,
        "detect": detect,
        "sizes": [{"fraction": f, "examples": examples.get(f), "label": sizes[f]} for f in fractions],
        "recipes": [_describe(recipe, recipes[0]) for recipe in recipes],
        "rows": rows,
        "rankings": rankings,
        "curves": _curves(records, metrics=metrics),
    }


def read_results(workdir: Path) -> dict[str, Any]:
    """The results of a comparison that has ended."""
    try:
        return read_json_object(workdir / FILE)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{workdir}: has no readable {FILE} ({error}); run `mmjax compare` there first") from None


def size_label(fraction: float | None, examples: int | None) -> str:
    """``of 1,024 examples (25 %)``."""
    percent = "" if fraction is None else f"{fraction:.4g} of the data"
    if examples is None:
        return f"with {percent}" if percent else ""
    return f"with {examples:,} examples" + (f" ({percent})" if percent else "")


def _rows(values: Mapping[str, Sequence[float]], *, fraction: float | None, metric: str) -> list[dict[str, Any]]:
    baseline = next(iter(values.values()))
    rows = []
    for number, (name, own) in enumerate(values.items()):
        interval = statistics.mean_interval(own)._asdict()
        row: dict[str, Any] = {"recipe": name, "fraction": fraction, "metric": metric, "values": list(own)} | interval
        if number:
            row["difference"] = statistics.paired_difference(own, baseline)._asdict()
        rows.append(row)
    return rows


def _correct(rows: Sequence[dict[str, Any]]) -> int:
    """Adds p values corrected for all comparisons of the report; returns their number."""
    differences = [row["difference"] for row in rows if "difference" in row]
    for difference, corrected in zip(differences, statistics.holm([d["p"] for d in differences]), strict=True):
        difference["p_holm"] = corrected
    return len(differences)


def _judge(row: dict[str, Any], *, detect: float | None) -> None:
    d = row["difference"]
    corrected = d["p_holm"]
    difference = statistics.Difference(**{k: v for k, v in d.items() if k != "p_holm"})
    wanted = abs(difference.mean) if detect is None else detect
    d["verdict"] = verdicts.judge(difference, corrected)
    d["detectable"] = statistics.detectable(difference.sd, difference.n)
    d["seeds_needed"] = statistics.seeds_needed(wanted, difference.sd)
    d["seeds_range"] = statistics.seeds_needed_range(wanted, difference.sd, difference.n)
    d["seeds_sentence"] = verdicts.seeds_sentence(d["seeds_needed"], d["seeds_range"], wanted)
    d["improves"] = (difference.mean < 0) == verdicts.lower_is_better(row["metric"])


def _final_metrics(run: ComparedRun, records: Sequence[Record], workdir: Path) -> Record:
    finished = [record for record in records if FINAL in record]
    if not finished:
        raise ConfigError(f"{run.folder(workdir)}: holds no finished run")
    return finished[-1]


def _choose_metrics(final: Mapping[ComparedRun, Record], metrics: Sequence[str]) -> list[str]:
    shared = set.intersection(*map(set, final.values()))
    known = [name for name in next(iter(final.values())) if name in shared]
    for metric in metrics:
        choose(metric, known, path="--metrics")
    chosen = list(metrics) or [name for name in known if name.rpartition("/")[2] in DEFAULT_METRICS]
    if not chosen:
        raise ConfigError(
            f"--metrics: none of {', '.join(DEFAULT_METRICS)} is measured; name one of {', '.join(known)}"
        )
    return chosen


def _describe(recipe: Recipe, baseline: Recipe) -> dict[str, Any]:
    before, now = (dict(_leaves(r.experiment().to_dict())) for r in (baseline, recipe))
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    changes = [(key, before.get(key), now.get(key)) for key in keys]
    own_budget = [
        f"{key}={json.dumps(own)} in place of {json.dumps(base)}"
        for key, base, own in changes
        if key.startswith(BUDGET)
    ]
    unequal = [f"{recipe.name} has {', '.join(own_budget)} of {baseline.name}"] if own_budget else []
    in_force = [list(pair) for k, pair in enumerate(recipe.own) if pair[0] not in dict(recipe.own[k + 1 :])]
    return {
        "name": recipe.name,
        "overrides": in_force,
        "changes": changes,
        "unequal": unequal,
        "steps": now["steps"],
    }


def _leaves(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            leaves += _leaves(inner, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", inner))
    return leaves


def _curves(records: Mapping[ComparedRun, Sequence[Record]], *, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of what is measured during training."""
    endings = {metric.rpartition("/")[2] for metric in metrics}
    by_run: dict[ComparedRun, dict[str, dict[float, float]]] = {}
    for run, lines in records.items():
        curves: dict[str, dict[float, float]] = {}
        for line in lines:
            for key, value in line.items():
                if FINAL not in line and (key == "train/loss" or key.rpartition("/")[2] in endings):
                    curves.setdefault(key, {})[line["step"]] = value
        by_run[run] = curves
    groups: dict[tuple[float | None, str], list[ComparedRun]] = {}
    for run in records:
        groups.setdefault((run.fraction, run.recipe.name), []).append(run)
    result = []
    for metric in dict.fromkeys(key for curves in by_run.values() for key in curves):
        for (fraction, name), runs in groups.items():
            own = [by_run[run].get(metric, {}) for run in runs]
            steps = sorted(set.intersection(*map(set, own)))
            if len(steps) < 2:
                continue
            values = np.array([[curve[step] for step in steps] for curve in own])
            mean = values.mean(axis=0)
            sd = values.std(axis=0, ddof=1) if len(own) > 1 else np.zeros(len(steps))
            kept = {x for x, _ in thin(list(zip(steps, mean.tolist(), strict=True)), CURVE_POINTS)}
            points = [[int(x), y, s] for x, y, s in zip(steps, mean.tolist(), sd.tolist(), strict=True) if x in kept]
            result.append({"metric": metric, "fraction": fraction, "recipe": name, "points": points})
    return result
