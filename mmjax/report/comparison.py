"""``report.html`` and ``report.md`` of a comparison of recipes, made from its results alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from mmjax.core.atomic import write_atomically
from mmjax.core.printable import printable
from mmjax.report.chart import COLORS, Series, line_chart, number
from mmjax.report.page import load_template

Results = Mapping[str, Any]
Row = Mapping[str, Any]

_EQUAL = "Every recipe runs with the same seeds, order of the data and number of steps, so runs are compared in pairs."
_UNEQUAL = "Every recipe runs with the same seeds, so runs are compared in pairs; budgets differ as said at the top."
_METHOD = (
    "{budget} Mean ± standard deviation is over seeds. Brackets are 95 % intervals of the mean paired difference by "
    "Student's t, each for itself; p is that of the paired t test, and beside it corrected by Holm's method for all "
    "{tests} comparisons of this report, so that the probability of any chance finding below 0.05 is at most 5 %. "
    "Detectable is the smallest difference that so many seeds find with power 0.8. Choose a recipe on validation "
    "data: the best of many on the test set looks better than it is."
)

LONGER = 1.1
"""The ratio of two times from which a report speaks of it."""


class IntervalBar(NamedTuple):
    """Where an interval, its middle and zero lie within a cell, in percent of its width."""

    low: float
    width: float
    mean: float
    zero: float


class ResultTable(NamedTuple):
    """The recipes by one metric and size of the data."""

    title: str
    rows: list[tuple[Row, IntervalBar | None]]


def write(workdir: Path, results: Results) -> Path:
    """Writes ``report.html`` and ``report.md`` into ``workdir``; returns the path of the page."""
    page = load_template("comparison.html.j2").render(
        results=results,
        title=workdir.resolve().name,
        warnings=list(warnings(results)),
        tiles=list(_tiles(results)),
        tables=list(_tables(results)),
        sizes=_size_table(results),
        size_chart=_size_chart(results),
        charts=_curves(results),
        method=method(results),
        with_interval=with_interval,
        spread=spread,
        style=_style,
        p_value=p_value,
        json=json.dumps,
        ranked_seeds=ranked_seeds(results),
    )
    path = workdir / "report.html"
    write_atomically(path, printable(page, lines=True).encode())
    write_atomically(workdir / "report.md", printable(format_markdown(results), lines=True) + "\n")
    return path


def format_markdown(results: Results) -> str:
    """The results as Markdown: verdicts, tables, step times and recipes."""
    count = len(results["recipes"]) - 1
    against = f"{count} recipes" if count != 1 else "one recipe"
    lines = [f"# {results['baseline']} and {against}: {results['config']}", ""]
    lines += [f"* {line}" for line in (*verdict_lines(results), *warnings(results))]
    header = ["recipe", "n", "mean ± sd", "paired difference [95 % interval]", "up / n", "p", "p, Holm", "detectable"]
    for table in _tables(results):
        lines += ["", f"## {table.title}", "", *_markdown_table(header, [_cells(row) for row, _ in table.rows])]
    if sizes := _size_table(results):
        lines += ["", "## Differences by the size of the data", "", *_markdown_table(*sizes)]
    if times := results.get("step_times"):
        header = ["recipe", "ms a step", "baseline's, in turn", "ratio [quartiles]", "ms a batch, one thread", "ratio"]
        lines += ["", "## Step time", "", *_markdown_table(header, [_time_cells(row) for row in times])]
    if changes := (results.get("rank_changes") or {}).get("entries"):
        lines += ["", f"## Captions whose own image moved most: its rank with each {ranked_seeds(results)}", ""]
        for entry in changes:
            ranks = (f"{name} {', '.join(map(str, values))}" for name, values in entry["ranks"].items())
            lines.append(f"* “{entry['caption']}”: {'; '.join(ranks)}")
    lines += ["", "## Recipes", ""]
    for recipe in results["recipes"]:
        overrides = ", ".join(f"`{key}={value}`" for key, value in recipe["overrides"]) or "the configuration as it is"
        lines.append(f"* {recipe['name']}: {overrides}")
    common = "".join(f" `--config.{key}={value}`" for key, value in results["overrides"])
    lines.append(f"* all: `--config={results['config']}`{common}, seeds {', '.join(map(str, results['seeds']))}")
    lines += ["", method(results)]
    return "\n".join(lines)


def method(results: Results) -> str:
    """How the figures came about, for a reader who sees only the report."""
    unequal = any(recipe["unequal"] for recipe in results["recipes"])
    return _METHOD.format(budget=_UNEQUAL if unequal else _EQUAL, tests=results["tests"])


def ranked_seeds(results: Results) -> str:
    """Which seeds the ranks of captions are of: ``seed``, or ``of the seeds 0, 1, 2`` where there are more."""
    ranked = (results.get("rank_changes") or {}).get("seeds") or results["seeds"]
    return "seed" if ranked == results["seeds"] else f"of the seeds {', '.join(map(str, ranked))}"


def verdict_lines(results: Results) -> list[str]:
    """The sentences about the headline metric: first the ranking of each size, then each recipe."""
    rankings = [ranking["sentence"] for ranking in results["rankings"]]
    return rankings + [row["sentence"] for row in results["rows"] if _is_headline(row, results) and "sentence" in row]


def warnings(results: Results) -> Iterator[str]:
    """What a reader must know before trusting a figure."""
    if len(results["seeds"]) == 1:
        yield "One seed only: nothing here can be told from chance. Run it with --seeds=4 or more."
    for recipe in results["recipes"]:
        for line in recipe["unequal"]:
            yield f"Not an equal budget: {line}."
    yield from _equal_time(results)
    for size in results["sizes"]:
        rows = [row for row in results["rows"] if _is_headline(row, results) and row["fraction"] == size["fraction"]]
        names = [row["recipe"] for row in rows if row.get("difference", {}).get("verdict") == "noise"]
        if names:
            place = f" {size['label']}" if len(results["sizes"]) > 1 else ""
            yield f"Inside the noise{place}, so no result either way: {', '.join(names)}."


def _equal_time(results: Results) -> Iterator[str]:
    """How long the baseline could train in the time of a better recipe that takes longer."""
    times = {row["recipe"]: row for row in results.get("step_times") or ()}
    better = {row["recipe"] for row in results["rows"] if _is_better(row, results)}
    baseline, *others = results["recipes"]
    for recipe in others:
        time = times.get(recipe["name"])
        # A recipe of fewer steps has that time already.
        fewer = min(1, recipe["steps"] / baseline["steps"])
        if recipe["name"] not in better or time is None or time["low"] * fewer < LONGER:
            continue
        steps = round(time["ratio"] * recipe["steps"])
        longer = [r for r in others if [key for key, *_ in r["changes"]] == ["steps"] and r["steps"] * LONGER >= steps]
        hint = ""
        if longer:
            hint = f", as {longer[0]['name']} does"
        elif not baseline["overrides"]:
            hint = f"; to see what that gives, add --variant='same time:steps={steps}'"
        yield (
            f"Equal steps are not equal time: a step of {recipe['name']} takes {time['ratio']:.3g} times that of "
            f"{baseline['name']}, which trains {steps:,} steps in the time of its {recipe['steps']:,}{hint}."
        )


def _is_better(row: Row, results: Results) -> bool:
    d = row.get("difference")
    return bool(d and _is_headline(row, results) and d["improves"] and d["verdict"] in ("clear", "uncorrected"))


def with_interval(d: Row) -> str:
    """``+1.2 [-0.3, +2.7]``."""
    return signed(d["mean"]) + ("" if d["low"] is None else f" [{signed(d['low'])}, {signed(d['high'])}]")


def spread(row: Row) -> str:
    """``12.3 ± 0.4``."""
    return number(row["mean"]) + ("" if row["sd"] is None else f" ± {row['sd']:.3g}")


def signed(value: float) -> str:
    """A number with its sign."""
    return f"{value:+.3g}" if abs(value) < 100 else f"{value:+,.0f}"


def p_value(p: float | None) -> str:
    """A p value to two digits; a dash if there is none."""
    return "–" if p is None else "<0.0001" if p < 1e-4 else f"{p:.2g}"


def _style(d: Row) -> str:
    """The class of a difference in the style sheet."""
    return f"clear {'good' if d['improves'] else 'bad'}" if d["verdict"] == "clear" else d["verdict"]


def _cells(row: Row) -> list[str]:
    start = [row["recipe"], str(row["n"]), spread(row)]
    if "difference" not in row:
        return [*start, "baseline", "", "", "", ""]
    d = row["difference"]
    detectable = "" if d["detectable"] is None else f"{d['detectable']:.3g}"
    return [*start, with_interval(d), f"{d['up']} / {d['n']}", p_value(d["p"]), p_value(d["p_holm"]), detectable]


def _time_cells(row: Row) -> list[str]:
    return [
        row["recipe"],
        f"{1e3 * row['seconds']:.1f}",
        f"{1e3 * row['first_seconds']:.1f}",
        f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
        f"{1e3 * row['batch_seconds']:.1f}",
        f"{row['batch_ratio']:.2f}",
    ]


def _is_headline(row: Row, results: Results) -> bool:
    return row["metric"] == results["metrics"][0]


def _tiles(results: Results) -> Iterator[tuple[str, str]]:
    metric = results["metrics"][0]
    size = results["sizes"][-1]
    rows = [row for row in results["rows"] if row["metric"] == metric and row["fraction"] == size["fraction"]]
    place = f" {size['label']}" if len(results["sizes"]) > 1 else ""
    yield f"{metric}, {results['baseline']}{place}", spread(rows[0])
    ranking = results["rankings"][-1]["order"]
    if not ranking[0]["is_baseline"]:
        yield f"best: {ranking[0]['recipe']}", signed(ranking[0]["difference"]["mean"])
    counts = [row["difference"]["verdict"] for row in results["rows"] if "difference" in row]
    yield "clear after correction", f"{counts.count('clear')} of {len(counts)}"
    yield "seeds", str(len(results["seeds"]))
    detectable = [row["difference"]["detectable"] for row in rows[1:] if row["difference"]["detectable"] is not None]
    if detectable:
        yield "detectable, smallest", f"±{min(detectable):.3g}"


def _tables(results: Results) -> Iterator[ResultTable]:
    for metric in results["metrics"]:
        for size in results["sizes"]:
            rows = [r for r in results["rows"] if r["metric"] == metric and r["fraction"] == size["fraction"]]
            title = f"{metric} {size['label']}" if len(results["sizes"]) > 1 else metric
            yield ResultTable(title, list(zip(rows, _bars(rows), strict=True)))


def _bars(rows: Sequence[Row]) -> list[IntervalBar | None]:
    """Of one table, all on one scale."""
    differences = [row.get("difference") or {"low": None} for row in rows]
    known = [d for d in differences if d["low"] is not None]
    low, high = (pick([0.0, *(d[end] for d in known)]) for pick, end in ((min, "low"), (max, "high")))
    low, high = (low, high) if low < high else (low - 1, high + 1)

    def bar(d: Row) -> IntervalBar:
        left, right, mean, zero = (
            round(4 + 92 * (value - low) / (high - low), 2) for value in (d["low"], d["high"], d["mean"], 0)
        )
        return IntervalBar(left, round(right - left, 2), mean, zero)

    return [None if d["low"] is None else bar(d) for d in differences]


def _size_table(results: Results) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows: the headline's differences of each recipe, a column for each size of the data."""
    if len(results["sizes"]) < 2:
        return None
    metric, rows = results["metrics"][0], []
    for recipe in results["recipes"][1:]:
        own = {r["fraction"]: r for r in results["rows"] if r["recipe"] == recipe["name"] and r["metric"] == metric}
        cells = []
        for size, ranking in zip(results["sizes"], results["rankings"], strict=True):
            place = [entry["recipe"] for entry in ranking["order"]].index(recipe["name"]) + 1
            cells.append(f"{with_interval(own[size['fraction']]['difference'])} ({place}.)")
        rows.append([recipe["name"], *cells])
    return [metric, *(_column(size) for size in results["sizes"])], rows


def _column(size: Row) -> str:
    return f"{size['examples']:,} examples" if size["examples"] is not None else size["label"]


def _size_chart(results: Results) -> list[Markup]:
    if len(results["sizes"]) < 2:
        return []
    metric, examples = results["metrics"][0], {size["fraction"]: size["examples"] for size in results["sizes"]}
    series = []
    for recipe in results["recipes"]:
        own = [r for r in results["rows"] if r["recipe"] == recipe["name"] and r["metric"] == metric]
        points = [(examples[row["fraction"]], row["mean"]) for row in own]
        band = [(examples[r["fraction"]], r["mean"] - r["sd"], r["mean"] + r["sd"]) for r in own if r["sd"] is not None]
        series.append(Series(recipe["name"], points, band))
    return _charts(f"{metric} by the size of the data", series, x_label="training examples")


def _curves(results: Results) -> list[Markup]:
    charts: list[Markup] = []
    for size in results["sizes"]:
        curves = [curve for curve in results["curves"] if curve["fraction"] == size["fraction"]]
        place = f" {size['label']}" if len(results["sizes"]) > 1 else ""
        for metric in dict.fromkeys(curve["metric"] for curve in curves):
            series = [
                Series(
                    curve["recipe"],
                    [(x, y) for x, y, _ in curve["points"]],
                    [(x, y - sd, y + sd) for x, y, sd in curve["points"]] if len(results["seeds"]) > 1 else (),
                )
                for curve in curves
                if curve["metric"] == metric
            ]
            charts += _charts(f"{metric}{place}", series, x_label="step")
    return charts


def _charts(title: str, series: Sequence[Series], *, x_label: str) -> list[Markup]:
    """One chart, or several with the first series in each, so that every color means one line."""
    first, *others = series
    size = COLORS - 1
    groups = [others[i : i + size] for i in range(0, len(others), size)] or [[]]
    return [line_chart(title, [first, *group], x_label=x_label) for group in groups]


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|---" * len(header) + "|", *lines[1:]]
