"""A plan of ``mmjax.planning.plan`` for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmjax.planning.plan import Plan

_RATES = {
    "compute": "matrix products at the peak",
    "memory": "HBM at its bandwidth",
    "collectives": "links at theirs, one collective after the other",
}


def text(plan: Plan) -> str:
    """All figures, a topic a paragraph."""
    mesh = " x ".join(f"{name} {size}" for name, size in plan["mesh"].items())
    lines = [
        f"{plan['topology']}: {plan['chips']} chips, mesh {mesh}",
        f"global batch {plan['batch_size']}, {plan['batch_size_a_device']} a device, {plan['precision']}, "
        f"{_parts(plan)}remat {plan['remat']}; compiled in {plan['compile_seconds']:.0f} s",
        "",
        *_memory(plan),
    ]
    if plan.get("collectives") is not None:
        lines += ["", *_arithmetic(plan), "", *_collectives(plan["collectives"]), "", *_roofline(plan)]
    if "tried" in plan:
        lines += ["", "batches tried", *_aligned([_tried(row) for row in plan["tried"]])]
    for loop in plan.get("unknown_loops", ()):
        lines.append(f"note: how often the loop {loop} runs is not known; it is counted once")
    lines += [f"note: {note}" for note in plan["notes"]]
    return "\n".join(lines)


def _parts(plan: Plan) -> str:
    return f"{plan['micro_batches']} micro-batches, " if plan["micro_batches"] > 1 else ""


def _memory(plan: Plan) -> list[str]:
    usable, needed = plan["usable_bytes"], plan["needed_bytes"]
    if "memory" in plan:
        parts = plan["memory"]
        rows = [
            ["arguments", _gib(parts["arguments"]), f"of which state {_gib(plan['state_bytes'])}"],
            ["output", _gib(parts["output"]), ""],
            ["shared by both", _gib(-parts["aliased"]), "the new state replaces the old"],
            ["temporaries", _gib(parts["temporaries"]), ""],
            ["code", _gib(parts["code"]), ""],
            ["together", _gib(needed), f"of {_gib(usable)} that a program may use: {needed / usable:.1%}"],
        ]
    else:
        rows = [
            ["needed", _gib(needed), f"of {_gib(usable)} that a program may use, state {_gib(plan['state_bytes'])}"]
        ]
    lines = ["HBM a device", *_aligned(rows)]
    if plan["fits"]:
        return [*lines, f"fits, with {_gib(usable - needed)} to spare"]
    return [*lines, f"does not fit, by {_gib(needed - usable)}; what would help:", *(f"  {h}" for h in plan["helps"])]


def _arithmetic(plan: Plan) -> list[str]:
    flops, model, moved = plan["flops"], plan["model_flops"], plan["bytes"]
    rows = [
        ["matrix products", f"{flops / 1e9:,.1f} GFLOP", f"{flops / model - 1:+.1%} on what the model needs"],
        ["HBM traffic", _gib(moved), f"of {flops / max(moved, 1):.0f} FLOP a byte"],
    ]
    return ["work a device and step", *_aligned(rows)]


def _collectives(rows: Sequence[Any]) -> list[str]:
    if not rows:
        return ["collectives: none"]
    cells = [["collective", "axes", "runs", "MiB", "MiB sent", "ms"]]
    for row in rows:
        mib, sent = row["bytes"] / 2**20, row["sent_bytes"] / 2**20
        cells.append(
            [
                row["kind"],
                row["axes"],
                str(row["executions"]),
                f"{mib:.2f}",
                f"{sent:.2f}",
                f"{1e3 * row['seconds']:.3f}",
            ]
        )
    return ["collectives a device and step", *_aligned(cells)]


def _roofline(plan: Plan) -> list[str]:
    found = plan["roofline"]
    rows = [
        [name, f"{1e3 * seconds:.2f} ms", _RATES[name] + (" (the bound)" if name == found["bound"] else "")]
        for name, seconds in found["seconds"].items()
    ]
    return [
        "roofline: no step is faster, and one that overlaps them perfectly is as fast as the slowest",
        *_aligned(rows),
        f"step {1e3 * found['step_seconds']:.2f} ms, {found['examples_per_second']:,.0f} examples a second, MFU "
        f"{found['mfu']:.1%} at most",
    ]


def _tried(row: Any) -> list[str]:
    return [str(row["batch_size"]), _gib(row["needed_bytes"]), "fits" if row["fits"] else "does not fit"]


def _gib(count: float) -> str:
    """Small amounts in MiB."""
    return f"{count / 2**30:.2f} GiB" if abs(count) >= 2**28 else f"{count / 2**20:.1f} MiB"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns: words to the left, numbers and their heads to the right."""
    columns = []
    for cells in zip(*rows, strict=True):
        width = max(map(len, cells))
        number = all(cell[:1] in "-0123456789" for cell in cells[1:] or cells)
        columns.append([cell.rjust(width) if number else cell.ljust(width) for cell in cells])
    return [("  " + "  ".join(row)).rstrip() for row in zip(*columns, strict=True)]
