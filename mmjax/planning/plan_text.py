"""A plan as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmjax.planning.plan import Plan

_BOUNDS = {
    "compute": "matrix products at peak FLOP/s",
    "memory": "HBM traffic at full bandwidth",
    "collectives": "collectives one after the other at full link bandwidth",
}


def format_plan(plan: Plan) -> str:
    """Returns all figures of a plan, one paragraph per topic."""
    mesh = " x ".join(f"{name} {size}" for name, size in plan["mesh"].items())
    lines = [
        f"{plan['topology']}: {plan['chips']} chips, mesh {mesh}",
        f"global batch {plan['batch_size']}, {plan['batch_size_per_device']} per device, {plan['precision']}, "
        f"{_micro_batches(plan)}remat {plan['remat']}; compiled in {plan['compile_seconds']:.0f} s",
        "",
        *_memory(plan),
    ]
    if plan.get("collectives") is not None:
        lines += ["", *_arithmetic(plan), "", *_collectives(plan["collectives"]), "", *_roofline(plan)]
    if "tried" in plan:
        lines += ["", "batches tried", *_aligned([_tried(row) for row in plan["tried"]])]
    for loop in plan.get("unknown_loops", ()):
        lines.append(f"note: the trip count of the loop {loop} is unknown; it counts once")
    lines += [f"note: {text}" for text in plan["notes"]]
    return "\n".join(lines)


def _micro_batches(plan: Plan) -> str:
    return f"{plan['micro_batches']} micro-batches, " if plan["micro_batches"] > 1 else ""


def _memory(plan: Plan) -> list[str]:
    usable, needed = plan["usable_bytes"], plan["needed_bytes"]
    if "memory" in plan:
        memory = plan["memory"]
        rows = [
            ["arguments", _gib(memory["arguments"]), f"of which state {_gib(plan['state_bytes'])}"],
            ["output", _gib(memory["output"]), ""],
            ["aliased", _gib(-memory["aliased"]), "the new state replaces the old"],
            ["temporaries", _gib(memory["temporaries"]), ""],
            ["code", _gib(memory["code"]), ""],
            ["total", _gib(needed), f"{needed / usable:.1%} of the {_gib(usable)} that a program may use"],
        ]
    else:
        rows = [
            ["needed", _gib(needed), f"of {_gib(usable)} that a program may use, state {_gib(plan['state_bytes'])}"]
        ]
    lines = ["HBM per device", *_aligned(rows)]
    if plan["fits"]:
        return [*lines, f"fits, with {_gib(usable - needed)} to spare"]
    return [
        *lines,
        f"does not fit, by {_gib(needed - usable)}; to reduce it:",
        *(f"  {h}" for h in plan["suggestions"]),
    ]


def _arithmetic(plan: Plan) -> list[str]:
    flops, model, moved = plan["flops"], plan["model_flops"], plan["bytes"]
    rows = [
        ["matrix products", f"{flops / 1e9:,.1f} GFLOP", f"{flops / model - 1:+.1%} relative to the model's FLOPs"],
        ["HBM traffic", _gib(moved), f"{flops / max(moved, 1):.0f} FLOP per byte"],
    ]
    return ["work per device and step", *_aligned(rows)]


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
    return ["collectives per device and step", *_aligned(cells)]


def _roofline(plan: Plan) -> list[str]:
    roofline = plan["roofline"]
    rows = [
        [name, f"{1e3 * seconds:.2f} ms", _BOUNDS[name] + (" (the bound)" if name == roofline["bound"] else "")]
        for name, seconds in roofline["seconds"].items()
    ]
    return [
        "roofline: a step takes at least as long as the slowest of these",
        *_aligned(rows),
        f"step {1e3 * roofline['step_seconds']:.2f} ms, {roofline['examples_per_second']:,.0f} examples/s, MFU "
        f"{roofline['mfu']:.1%} at most",
    ]


def _tried(row: Any) -> list[str]:
    return [str(row["batch_size"]), _gib(row["needed_bytes"]), "fits" if row["fits"] else "does not fit"]


def _gib(count: float) -> str:
    """Formats bytes in GiB, or in MiB if small."""
    return f"{count / 2**30:.2f} GiB" if abs(count) >= 2**28 else f"{count / 2**20:.1f} MiB"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligns columns: text to the left, numbers and their headers to the right."""
    columns = []
    for cells in zip(*rows, strict=True):
        width = max(map(len, cells))
        number = all(cell[:1] in "-0123456789" for cell in cells[1:] or cells)
        columns.append([cell.rjust(width) if number else cell.ljust(width) for cell in cells])
    return [("  " + "  ".join(row)).rstrip() for row in zip(*columns, strict=True)]
