"""One sentence that a reader can quote about each difference, and which recipe comes first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mmjax.commands.comparing import statistics
from mmjax.commands.comparing.statistics import Difference

Verdict = Literal["clear", "uncorrected", "noise", "unknown"]
"""Of a difference: beyond zero after the correction; beyond zero by itself alone; neither; one seed says nothing."""

SIGNIFICANT = 1 - statistics.CONFIDENCE
_LOWER_IS_BETTER = ("rank", "loss", "gap", "uniformity")


def judge(difference: Difference, p_holm: float) -> Verdict:
    """What the interval and the corrected p say."""
    if math.isnan(difference.p):
        return "unknown"
    if p_holm < SIGNIFICANT:
        return "clear"
    return "uncorrected" if difference.p < SIGNIFICANT else "noise"


def lower_is_better(metric: str) -> bool:
    """Whether a lower value of the metric is the better one, by its name."""
    return any(word in metric.rpartition("/")[2] for word in _LOWER_IS_BETTER)


def sentence(row: Mapping[str, Any], *, baseline: str, tests: int, size: str) -> str:
    """The verdict on one recipe and metric."""
    d, place = row["difference"], f" {size}" if size else ""
    name, metric, mean = row["recipe"], row["metric"], d["mean"]
    if d["verdict"] == "unknown":
        return (
            f"{name} differs from {baseline} by {mean:+.3g} in {metric}{place} with one seed, which says nothing about "
            "chance."
        )
    interval = f"95 % interval {d['low']:+.3g} to {d['high']:+.3g}"
    seeds = f"{max(d['up'], d['down'])} of {d['n']} seeds"
    if d["verdict"] == "noise":
        return (
            f"{name} and {baseline} cannot be told apart in {metric}{place}: {mean:+.3g}, {interval}, inside the "
            f"noise; {d['n']} seeds find differences of {d['detectable']:.3g} and more, and it would take "
            f"{d['seeds_sentence']} (power 0.8)."
        )
    change = f"{name} {'raises' if mean > 0 else 'lowers'} {metric}{place} by {abs(mean):.3g} against {baseline}"
    corrected = f"p = {format_p(d['p'])}, {format_p(d['p_holm'])} after Holm's correction for {tests} comparisons"
    if d["verdict"] == "clear":
        return f"{change} ({interval}, {seeds}; {corrected})."
    return f"{change} if looked at alone ({interval}, {seeds}), but not among all that was compared ({corrected})."


def seeds_sentence(needed: int | None, between: Sequence[int | None], difference: float) -> str:
    """How many seeds a difference needs, and the range of that, because the spread is an estimate."""
    count, low, high = (
        f"more than {statistics.MOST_SEEDS:,}" if number is None else f"{number:,}" for number in (needed, *between)
    )
    return f"{count} seeds (between {low} and {high}) for one of {difference:.3g}"


def rank_recipes(rows: Sequence[Mapping[str, Any]], *, baseline: str) -> list[dict[str, Any]]:
    """The recipes of one metric and size from best to worst, each with its paired distance to the first.

    Args:
        rows: One row for each recipe, with ``values`` in the order of the seeds.
        baseline: The recipe that has no difference of its own.
    """
    sign = -1 if rows and lower_is_better(rows[0]["metric"]) else 1
    order = sorted(rows, key=lambda row: -sign * row["mean"])
    ranking = []
    for row in order:
        behind = statistics.paired_difference(row["values"], order[0]["values"])
        level = row is order[0] or not (behind.high < 0 if sign > 0 else behind.low > 0)
        ranking.append(
            {
                "recipe": row["recipe"],
                "mean": row["mean"],
                "difference": row.get("difference"),
                "level_with_first": level,
                "is_baseline": row["recipe"] == baseline,
            }
        )
    return ranking


def ranking_sentence(ranking: Sequence[Mapping[str, Any]], *, metric: str, baseline: str, size: str) -> str:
    """Which recipe to take for data of this size, as far as the runs can say."""
    first = ranking[0]
    others = [entry["recipe"] for entry in ranking[1:] if entry["level_with_first"]]
    level = f"; {', '.join(others)} cannot be told from it" if others else ""
    start = f"{size[:1].upper()}{size[1:]}: " if size else ""
    if first["is_baseline"]:
        return f"{start}nothing beats {baseline} in {metric}{level}."
    d = first["difference"]
    certainty = {
        "clear": "clear of zero after the correction",
        "uncorrected": "clear of zero alone, not after the correction",
        "noise": "inside the noise",
        "unknown": "one seed, so nothing is known of chance",
    }[d["verdict"]]
    interval = "" if d["verdict"] == "unknown" else f" [{d['low']:+.3g}, {d['high']:+.3g}]"
    lead = f"{first['recipe']} comes first in {metric}, {d['mean']:+.3g}{interval} against {baseline}"
    return f"{start}{lead}, {certainty}{level}."


def format_p(p: float) -> str:
    """A p value to two digits."""
    return "below 0.0001" if p < 1e-4 else f"{p:.2g}"
