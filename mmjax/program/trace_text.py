"""A trace's summary as a page of text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from mmjax.program.op_kinds import Kind
from mmjax.program.trace import Summary
from mmjax.runs.goodput import NAMES as TIMES
from mmjax.runs.goodput import span
from mmjax.runs.timing import Activity

SHOWN = 15
NAMES: dict[Kind, str] = {
    "matrix": "matrix products and attention",
    "other": "other operations and fusions",
    "collective": "collectives",
    "copy": "copies, transposes, transfers",
    "control": "loops' own work",
    "elsewhere": "other programs",
}


def text(summary: Summary, *, title: str, path: Path, host: Mapping[Activity, float]) -> str:
    """The whole page; ``host`` is what the process did beside the steps meanwhile, in seconds."""
    mean = statistics.mean(summary.step_seconds)
    lines = [
        f"Where device time went: {title}",
        "",
        f"step time, ms   mean {1e3 * mean:.2f}   min {1e3 * min(summary.step_seconds):.2f}   "
        f"max {1e3 * max(summary.step_seconds):.2f}   ({summary.steps} steps)",
        f"idle            {summary.idle:.1%} of a step",
        *_beside(host),
        "",
        f"{'kind':32}{'share':>8}{'ms a step':>11}{'hidden, ms':>12}",
    ]
    length = sum(summary.step_seconds) / summary.steps
    for kind, name in NAMES.items():
        share, taken = summary.shares[kind], summary.beside[kind]
        if taken > 0:
            hidden = "" if kind in ("matrix", "control") else f"{1e3 * max(0.0, taken - share * length):.2f}"
            lines.append(f"{name:32}{share:>8.1%}{1e3 * share * length:>11.2f}{hidden:>12}")
    lines += [
        f"{'idle':32}{summary.idle:>8.1%}{1e3 * summary.idle * length:>11.2f}",
        "",
        "A moment counts for the first kind in the table that runs in it; what ran beside that is hidden.",
        f"Means over {summary.steps} steps and the {summary.devices} device(s) of this process.",
        "",
        f"{'operation':52}{'kind':12}{'ms a step':>10}{'of a step':>11}{'count':>9}",
    ]
    for row in summary.rows[:SHOWN]:
        share = row.seconds / length if length else 0.0
        name = row.name if len(row.name) <= 50 else row.name[:49] + "…"
        lines.append(f"{name:52}{row.kind:12}{1e3 * row.seconds:>10.3f}{share:>11.1%}{row.count:>9.4g}")
    rest = summary.rows[SHOWN:]
    if rest:
        lines.append(f"{f'… and {len(rest)} more':64}{1e3 * sum(row.seconds for row in rest):>10.3f}")
    return "\n".join([*lines, "", f"trace: {path}", ""])


def _beside(host: Mapping[Activity, float]) -> list[str]:
    """The line of what the steps' times and idleness hold that is none of theirs."""
    words = [f"{TIMES[name]} {span(seconds)}" for name, seconds in host.items() if seconds >= 0.05]
    return [f"in between      {', '.join(words)}"] if words else []


def brief(summary: Summary) -> str:
    """The same in one line."""
    shares = sorted(((share, kind) for kind, share in summary.shares.items() if share >= 0.005), reverse=True)
    words = ", ".join(f"{NAMES[kind]} {share:.0%}" for share, kind in shares)
    return f"a step took {1e3 * statistics.mean(summary.step_seconds):.1f} ms: {words}, idle {summary.idle:.0%}"
