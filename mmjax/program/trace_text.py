"""A trace summary as text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from mmjax.program.op_kinds import OpKind
from mmjax.program.trace import Summary

MAX_OPS = 15
LABELS: dict[OpKind, str] = {
    "matrix": "matrix products and attention",
    "other": "other operations and fusions",
    "collective": "collectives",
    "copy": "copies, transposes, transfers",
    "control": "loop overhead",
    "elsewhere": "other programs",
}


def format_summary(summary: Summary, *, title: str, path: Path, host: Sequence[str] = ()) -> str:
    """Returns tables of device time by kind and by operation.

    Args:
      summary: from ``trace.summarize``.
      title: which steps were traced, and on what.
      path: the trace file.
      host: other activities of the process between the traced steps, such as ``evaluation 2.1s``.
    """
    mean = statistics.mean(summary.step_seconds)
    lines = [
        f"Device time: {title}",
        "",
        f"step time, ms   mean {1e3 * mean:.2f}   min {1e3 * min(summary.step_seconds):.2f}   "
        f"max {1e3 * max(summary.step_seconds):.2f}   ({summary.steps} steps)",
        f"idle            {summary.idle:.1%} of a step",
        *([f"in between      {', '.join(host)}"] if host else []),
        "",
        f"{'kind':32}{'of a step':>10}{'ms per step':>13}{'hidden, ms':>12}",
    ]
    length = sum(summary.step_seconds) / summary.steps
    for kind, label in LABELS.items():
        fraction, busy = summary.fractions[kind], summary.busy_seconds[kind]
        if busy > 0:
            hidden = "" if kind in ("matrix", "control") else f"{1e3 * max(0.0, busy - fraction * length):.2f}"
            lines.append(f"{label:32}{fraction:>10.1%}{1e3 * fraction * length:>13.2f}{hidden:>12}")
    lines += [
        f"{'idle':32}{summary.idle:>10.1%}{1e3 * summary.idle * length:>13.2f}",
        "",
        "Overlapping operations count for the kind that is listed first; the others are hidden.",
        f"Means over {summary.steps} steps and the {summary.devices} device(s) of this process.",
        "",
        f"{'operation':52}{'kind':12}{'ms per step':>12}{'of a step':>11}{'count':>9}",
    ]
    for op in summary.ops[:MAX_OPS]:
        fraction = op.seconds / length if length else 0.0
        name = op.name if len(op.name) <= 50 else op.name[:49] + "…"
        lines.append(f"{name:52}{op.kind:12}{1e3 * op.seconds:>12.3f}{fraction:>11.1%}{op.count:>9.4g}")
    rest = summary.ops[MAX_OPS:]
    if rest:
        lines.append(f"{f'… and {len(rest)} more':64}{1e3 * sum(op.seconds for op in rest):>12.3f}")
    return "\n".join([*lines, "", f"trace: {path}", ""])


def format_line(summary: Summary) -> str:
    """Returns the mean step time and the kinds that take at least 0.5 % of it, in one line."""
    kinds = sorted(((part, kind) for kind, part in summary.fractions.items() if part >= 0.005), reverse=True)
    listed = ", ".join(f"{LABELS[kind]} {fraction:.0%}" for fraction, kind in kinds)
    return f"a step took {1e3 * statistics.mean(summary.step_seconds):.1f} ms: {listed}, idle {summary.idle:.0%}"
