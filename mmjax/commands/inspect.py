"""Show what a checkpoint holds.

Prints a checkpoint's step, its parameters by module, their bytes, and one SHA-256 over all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.commands.common import options

MODULE_DEPTH = 2  # components of a parameter's path that make a row of the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    options.add_checkpoint(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the summary of a checkpoint."""
    workdir, step = options.local_workdir(args), options.checkpoint_step(args)
    from mmjax.commands.common.jax_setup import keep_compiled_programs

    keep_compiled_programs()
    summary = summarize(workdir, step=step)
    options.print_result(summary, format_text, as_json=args.json)
    return 0


def summarize(workdir: str | Path, *, step: Any = "last") -> dict[str, Any]:
    """Sizes of a checkpoint's parameters by module, and their fingerprint; its model is not built.

    Args:
        workdir: A run folder.
        step: A step, ``last`` or ``best``.
    """
    from mmjax.checkpoints.fingerprint import fingerprint
    from mmjax.checkpoints.manager import Checkpoints
    from mmjax.runs import folder

    checkpoints = Checkpoints(workdir, directory=folder.checkpoint_directory(workdir), read_only=True)
    step, params = checkpoints.retry_if_deleted(step, lambda step: checkpoints.read_params(step=step))
    checkpoints.close()
    modules: dict[str, dict[str, int]] = {}
    for path, array in params.items():
        module = "/".join(path.split("/")[:-1][:MODULE_DEPTH]) or path
        row = modules.setdefault(module, {"arrays": 0, "parameters": 0, "bytes": 0})
        row["arrays"] += 1
        row["parameters"] += array.size
        row["bytes"] += array.nbytes
    return {
        "workdir": str(workdir),
        "step": step,
        "steps": checkpoints.steps,
        "modules": modules,
        "parameters": sum(row["parameters"] for row in modules.values()),
        "bytes": sum(row["bytes"] for row in modules.values()),
        "sha256": fingerprint(params),
    }


def format_text(summary: Mapping[str, Any]) -> str:
    """A table of modules with the step above and the fingerprint below."""
    rows = [("module", "arrays", "parameters", "bytes")]
    rows += [(name, *(f"{row[k]:,}" for k in rows[0][1:])) for name, row in summary["modules"].items()]
    arrays = sum(row["arrays"] for row in summary["modules"].values())
    rows.append(("all", f"{arrays:,}", f"{summary['parameters']:,}", f"{summary['bytes']:,}"))
    steps = ", ".join(map(str, summary["steps"]))
    return f"step {summary['step']} (saved: {steps})\n{options.align(rows)}\nsha256 {summary['sha256']}"
