"""Tables of results: a model's own, beside those of others, and beside published ones that are marked as such."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mmjax.evals.common.base import Published
from mmjax.evals.common.metric_names import load_evaluator
from mmjax.evals.common.results import Result, by_model, name_results

BLIND = "_blind"
"""The end of the name of a metric that is the control of another one."""


class Table(NamedTuple):
    """A head, rows of as many cells, and lines below them."""

    head: list[str]
    rows: list[list[str]]
    footer: list[str]

    def text(self) -> str:
        """For a terminal: the first column aligned left, the others right."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in (self.head, *self.rows)
        ]
        return "\n".join(line.rstrip() for line in [*lines, *self.footer])

    def markdown(self) -> str:
        """The same as Markdown."""
        marks = ["---", *["---:"] * (len(self.head) - 1)]
        lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (self.head, marks, *self.rows)]
        notes = ["\n" + line.replace("*", r"\*") for line in self.footer if line]
        return "\n".join([*lines, *notes])


def make_tables(
    results: Sequence[Result], *, against: Sequence[Result] = (), published: bool = False, every: bool = False
) -> list[Table]:
    """One row for each metric, in one table; with published results in one for each evaluator, as each has its own.

    Args:
        results: Of one model.
        against: Of others, or of the same one before: their values, and how much those of ``results`` are above.
        published: With columns of published results of the same data sets, marked as not measured.
        every: All metrics, not the most important ones alone.
    """
    named = list(zip(name_results(results), results, strict=True))
    tasks = dict.fromkeys(result.task for result in results)
    groups = [[row for row in named if row[1].task == task] for task in tasks] if published else [named]
    return [_make_table(group, against, published=published, every=every) for group in groups]


def _make_table(
    named: Sequence[tuple[str, Result]], against: Sequence[Result], *, published: bool, every: bool
) -> Table:
    others = by_model(against)
    anchors = _anchors([result for _, result in named]) if published else []
    blind = {} if every else _blind_results([result for _, result in named])
    companions = {id(result) for result in blind.values()}
    shown = [row for row in named if every or (is_headline(row[1]) and id(row[1]) not in companions)]
    has_blind = any(_key(result) in blind for _, result in shown)
    head = ["", "n", "value", *(["blind"] if has_blind else [])]
    for number in range(1, len(others) + 1):
        head += [f"[{number}]", "difference"]
    head += [f"published [{number}]" for number in range(len(others) + 1, len(others) + len(anchors) + 1)]
    rows, differing = [], False
    for name, result in shown:
        row = [name, "" if result.count is None else str(result.count), _number(result.value)]
        if has_blind:
            row.append("" if (other := blind.get(_key(result))) is None else _number(other.value))
        for own in others.values():
            other = own.get(_key(result))
            if other is None or other.value is None or result.value is None:
                row += ["" if other is None else _number(other.value), ""]
                continue
            counts = {other.count, result.count} - {None}  # one may come from a version that gave none
            same = other.options == result.options and len(counts) < 2
            differing |= not same
            row += [_number(other.value) + ("" if same else "*"), f"{result.value - other.value:+.4g}"]
        row += ["" if (value := _published_value(entry, result)) is None else _number(value) for _, entry in anchors]
        rows.append(row)
    footer = (
        ["blind: the control that does not look, with the mean over the benchmark for each image (of winogavil, cue)"]
        if has_blind
        else []
    )
    footer += [f"[{number}] {model}" for number, model in enumerate(others, 1)]
    footer += [
        f"[{number}] {entry.model}: published by {entry.source}, not measured here"
        for number, (_, entry) in enumerate(anchors, len(others) + 1)
    ]
    if differing:
        footer.append("* measured with other options, or over another number of examples")
    return Table(head, rows, ["", *footer] if footer else [])


def is_headline(result: Result) -> bool:
    """Whether a metric is one of the most important ones of its evaluator."""
    evaluator = load_evaluator(result.task)
    is_summary = result.dataset == result.task and evaluator.has_summary()
    return not evaluator.headline or result.metric in evaluator.headline or is_summary


def _key(result: Result) -> tuple[str, str, str]:
    return result.dataset, result.task, result.metric


def _blind_results(results: Sequence[Result]) -> dict[tuple[str, str, str], Result]:
    """What a model gets that does not look, by the key of the metric that it is the control of."""
    keys = set(map(_key, results))
    blind = {}
    for result in results:
        key = (result.dataset, result.task, result.metric.removesuffix(BLIND))
        if result.metric.endswith(BLIND) and key in keys:
            blind[key] = result
    return blind


def _anchors(results: Sequence[Result]) -> list[tuple[str, Published]]:
    """Each published entry of the data sets that were measured, with its evaluator; models in their order."""
    measured = dict.fromkeys((result.task, result.dataset) for result in results)
    entries = [
        (task, entry)
        for task in dict.fromkeys(task for task, _ in measured)
        for entry in load_evaluator(task).published
        if (task, entry.dataset) in measured
    ]
    # One column for all data sets of a publication's model.
    columns: dict[tuple[str, str], tuple[str, Published]] = {}
    for task, entry in entries:
        key = entry.model, entry.source
        metrics = {f"{task}/{entry.dataset}/{name}": value for name, value in entry.metrics.items()}
        before = columns[key][1].metrics if key in columns else {}
        columns[key] = task, entry._replace(metrics={**before, **metrics})
    return list(columns.values())


def _published_value(entry: Published, result: Result) -> float | None:
    return entry.metrics.get(f"{result.task}/{result.dataset}/{result.metric}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
