"""Where the wall time of all starts of a run went, as a table of a report."""

from __future__ import annotations

import math
from html import escape

from mmjax.report.tables import percent
from mmjax.runs.goodput import NAMES, span


def section(lines: list[dict[str, float]]) -> str:
    """The last goodput among the metrics, by activity; empty where there is none."""
    known = [line for line in lines if "goodput" in line and line.get("goodput/total_seconds", 0.0) > 0]
    if not known:
        return ""
    last = known[-1]
    total = last["goodput/total_seconds"]
    body = []
    for name, words in NAMES.items():
        seconds = last.get(f"goodput/{name}_seconds", 0.0)
        if not (math.isfinite(seconds) and seconds > 0):
            continue
        share = min(seconds / total, 1.0)
        body.append(
            f'<tr><th scope="row">{escape(words)}</th><td>{span(seconds)}</td><td><b>{percent(share)}</b></td>'
            f'<td class="bar"><div><i style="width:{100 * share:.1f}%"></i></div></td></tr>'
        )
    starts = last.get("goodput/starts", 1.0)
    note = f"{span(total)} in {starts:,.0f} start{'' if starts == 1 else 's'}"
    between = last.get("goodput/between_starts_seconds")
    if starts > 1:
        note += f"; {'unknown' if between is None else span(between)} between them, not counted"
    return (
        '<section><h2>Where the time went</h2><div class="task"><div class="scroll"><table class="numbers">'
        f"<thead><tr><th></th><th>time</th><th>%</th><th></th></tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f'<p class="note">{note}. Goodput, the share of steps that the run has kept: '
        f"{percent(last['goodput'])} %.</p></div></section>"
    )
