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
        f"{plan['topology']}: {plan['chips']} {'chip' if plan['chips'] == 1 else 'chips'}, mesh {mesh}",
        f"global batch {plan['batch_size']}, {plan['batch_size_per_device']} per device, {plan['precision']}, "
        f"{_micro_batches(plan)}remat {plan['remat']}; compiled in {plan['compile_seconds']:.0f} s",
        "attention: " + ", ".join(f"{tower} {kernel}" for tower, kernel in plan["attention"].items()),
        "",
        *_memory(plan),
    ]
    if plan.get("collectives") is not None:
        lines += ["", *_arithmetic(plan), "", *_kernels(plan["kernels"]), *_float32_products(plan)]
        lines += ["", *_collectives(plan), "", *_roofline(plan), "", *_estimate(plan)]
    if "dearest_kernels" in plan:
        lines += ["", *_dearest(plan["dearest_kernels"])]
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
            *([["on the host", _gib(plan["host_bytes"]), "beside the total"]] if plan["host_bytes"] else []),
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


def _kernels(rows: Sequence[Any]) -> list[str]:
    cells = [["kernels", "runs", "GB", "TFLOP", "ms"], *(_kernel_cells(row, row["kind"]) for row in rows)]
    total = {key: sum(row[key] for row in rows) for key in ("executions", "bytes", "flops", "seconds")}
    return ["kernels per device and step, each at its bound", *_aligned([*cells, _kernel_cells(total, "total")])]


def _kernel_cells(row: Any, name: str) -> list[str]:
    return [
        name,
        f"{row['executions']:,}",
        f"{row['bytes'] / 1e9:.2f}",
        f"{row['flops'] / 1e12:.2f}",
        f"{1e3 * row['seconds']:.2f}",
    ]


def _float32_products(plan: Plan) -> list[str]:
    rows = plan["float32_products"]
    if plan["precision"] == "float32" or not rows:
        return []
    cells = [
        [f"{row['executions']:,} runs", f"{row['flops'] / 1e9:.1f} GFLOP", row["result"], _place(row)] for row in rows
    ]
    return ["", f"products of float32 in a step of {plan['precision']}", *_aligned(cells)]


def _place(row: Any) -> str:
    """Returns where a kernel comes from."""
    source = row["source"] or row["operation"] or "made by the compiler"
    return f"{source}, {row['phase']}" if row["phase"] else source


def _dearest(rows: Sequence[Any]) -> list[str]:
    cells = [["ms", "of all", "runs", "bound", "kernel", "result", "from"]]
    for row in rows:
        percent = f"{row['fraction']:.1%}"
        milliseconds, runs = f"{1e3 * row['seconds']:.2f}", f"{row['executions']:,}"
        cells.append([milliseconds, percent, runs, row["bound"], row["kind"], row["result"], _place(row)])
    return ["the dearest kernels, equal ones of one line in one row", *_aligned(cells)]


def _estimate(plan: Plan) -> list[str]:
    made, published = plan["estimate"], plan["published"]
    figures = ", ".join(
        f"{published[key] / 1e12:,.{digits}f} {unit}"
        for key, digits, unit in (("hbm_bandwidth", 2, "TB/s"), ("bf16", 0, "TFLOP/s bfloat16"), ("f32", 0, "float32"))
    )
    return [
        f"estimate: kernels one after the other, each the longer one of bytes and FLOPs ({figures})",
        f"  {1e3 * made['kernel_seconds']:.2f} ms, and {1e3 * made['exposed_seconds']:.2f} ms of collectives without a "
        "kernel beside them",
        _speed(made),
    ]


def _collectives(plan: Plan) -> list[str]:
    rows, links = plan["collectives"], plan["published"]["links"]
    if not rows:
        return ["collectives: none"]
    cells = [["collective", "axes", "runs", "MiB", "MiB sent", "beside products", "ms", "exposed"]]
    for row in rows:
        mib, sent = row["bytes"] / 2**20, row["sent_bytes"] / 2**20
        cells.append(
            [
                row["kind"],
                row["axes"],
                str(row["executions"]),
                f"{mib:.2f}",
                f"{sent:.2f}",
                f"{row['overlapped_bytes'] / max(row['bytes'], 1):.0%}",
                f"{1e3 * row['seconds']:.3f}",
                f"{1e3 * row['exposed_seconds']:.3f}",
            ]
        )
    speeds = ", ".join(f"{name} {rate / 1e9:,.0f} GB/s" for name, rate in links.items())
    return [f"collectives per device and step ({speeds}, one way)", *_aligned(cells)]


def _roofline(plan: Plan) -> list[str]:
    roofline = plan["roofline"]
    rows = [
        [name, f"{1e3 * seconds:.2f} ms", _BOUNDS[name] + (" (the bound)" if name == roofline["bound"] else "")]
        for name, seconds in roofline["seconds"].items()
    ]
    return [
        "roofline: a step takes at least as long as the slowest of these",
        *_aligned(rows),
        f"{_speed(roofline)} at most",
    ]


def _speed(row: Any) -> str:
    return (
        f"step {1e3 * row['step_seconds']:.2f} ms, {row['examples_per_second']:,.0f} examples/s, MFU {row['mfu']:.1%}"
    )


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
