"""The difference of two reports: of the same recipes, measured at another time or by another version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.commands.common.options import without_nan
from mmjax.commands.comparing import statistics
from mmjax.commands.comparing.results import read_results
from mmjax.core.config import ConfigError
from mmjax.report.comparison import signed, spread, with_interval

SETTINGS = ("version", "config", "overrides", "baseline", "seeds")


def compare_results(old: Path, new: Path) -> dict[str, Any]:
    """What the comparison in ``new`` changed against that in ``old``.

    Returns:
        ``settings``: [name, old, new] of those that differ, recipes' overrides among them; ``only_old`` and
        ``only_new``: recipes of one alone; ``rows``: for each recipe, metric and size of both the ``old`` and the
        ``new`` row, and the ``change`` of the mean, in pairs where the seeds are the same, else by Welch's interval.
    """
    before, now = read_results(old), read_results(new)
    changes = [[key, before[key], now[key]] for key in SETTINGS if before[key] != now[key]]
    recipes = [{recipe["name"]: recipe["overrides"] for recipe in results["recipes"]} for results in (before, now)]
    changes += [
        [f"recipe {name}", recipes[0][name], overrides]
        for name, overrides in recipes[1].items()
        if recipes[0].get(name, overrides) != overrides
    ]
    paired = before["seeds"] == now["seeds"]
    old_rows = {_key(row): row for row in before["rows"]}
    rows = []
    for row in now["rows"]:
        if (earlier := old_rows.get(_key(row))) is not None:
            difference = statistics.paired_difference if paired else statistics.welch_difference
            change = difference(row["values"], earlier["values"])._asdict()
            rows.append({"old": earlier, "new": row, "change": without_nan(change)})
    if not rows:
        raise ConfigError(f"--diff {old} {new}: no recipe and metric is in both")
    return {
        "old": str(old),
        "new": str(new),
        "paired": paired,
        "settings": changes,
        "only_old": [name for name in recipes[0] if name not in recipes[1]],
        "only_new": [name for name in recipes[1] if name not in recipes[0]],
        "rows": rows,
    }


def format_markdown(diff: Mapping[str, Any]) -> str:
    """The difference as Markdown."""
    lines = [f"{diff['old']} → {diff['new']}"]
    lines += [f"* {name}: {old} → {new}" for name, old, new in diff["settings"]]
    for side in ("old", "new"):
        if names := diff[f"only_{side}"]:
            lines.append(f"* only in {diff[side]}: {', '.join(names)}")
    sizes = len({row["new"]["fraction"] for row in diff["rows"]}) > 1
    size_header = ["fraction"] if sizes else []
    header = ["recipe", "metric", *size_header, "old", "new", "change [95 %]", "difference, old", "difference, new"]
    lines += ["", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in diff["rows"]:
        old, new = row["old"], row["new"]
        size = [str(new["fraction"])] if sizes else []
        both = [with_interval(r["difference"]) if "difference" in r else "" for r in (old, new)]
        cells = [new["recipe"], new["metric"], *size, spread(old), spread(new), with_interval(row["change"]), *both]
        lines.append(f"| {' | '.join(cells)} |")
    how = "seed by seed" if diff["paired"] else "by Welch's interval, as the seeds differ"
    outside = [row for row in diff["rows"] if row["change"]["low"] is not None and _excludes_zero(row["change"])]
    lines += ["", f"Changes are compared {how}; {len(outside)} of {len(diff['rows'])} exclude zero, uncorrected."]
    lines += [f"* {row['new']['recipe']}, {row['new']['metric']}: {signed(row['change']['mean'])}" for row in outside]
    return "\n".join(lines)


def _key(row: Mapping[str, Any]) -> tuple[str, float | None, str]:
    return row["recipe"], row["fraction"], row["metric"]


def _excludes_zero(change: Mapping[str, Any]) -> bool:
    return change["low"] > 0 or change["high"] < 0
