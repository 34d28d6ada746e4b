"""Time the compiled training step.

Prints step time, examples a second, FLOPs, and memory of the compiled step, with the ratio to the first row. On
accelerators whose published figures are known also the number of kernels and the time that these figures give.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.commands.common import options
from mmjax.core.config import ConfigError, Ge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    options.add_config(parser)
    parser.add_argument(
        "--augment", metavar="A,B+C", help="augmentations to compare, one row each (default: the config's)"
    )
    parser.add_argument(
        "--objective",
        metavar="A,B",
        help="objectives to compare, with their defaults, one row each, instead of --augment",
    )
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="timed steps of each row (default: 10)")
    parser.add_argument("--profile", metavar="DIR", help="also trace some steps, and list the device's time in DIR")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Times the step of one or several augmentations or objectives in one process."""
    options.check_ranges(args, repeats=Ge(1))
    if args.objective and args.augment:
        raise ConfigError(
            f"--objective={args.objective}: with --augment it is unclear which rows to time; leave one out"
        )
    from mmjax.commands.common.jax_setup import keep_compiled_programs

    keep_compiled_programs()
    from mmjax.commands.common.step_timing import time_steps
    from mmjax.config_file import load_config
    from mmjax.experiment import Experiment
    from mmjax.weights.config import InitConfig

    experiment = Experiment.from_dict(load_config(args.config, args.overrides))
    experiment = dataclasses.replace(experiment, init=InitConfig())  # what the weights are changes no time
    names = options.split_csv(args.augment)
    experiments = [(name, dataclasses.replace(experiment, augment=_entries(name))) for name in names]
    objectives = options.split_csv(args.objective)
    experiments += [(name, dataclasses.replace(experiment, objective={"name": name})) for name in objectives]
    own = ("+".join(name for name, _ in experiment.augment) or "none", experiment)
    rows = time_steps(experiments or [own], repeats=args.repeats, profile=args.profile)
    if objectives:
        rows = [{"objective" if key == "augment" else key: value for key, value in row.items()} for row in rows]
    options.print_result(rows, format_text, as_json=args.json)
    return 0


def format_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of ``time_steps`` as a table."""
    label = "objective" if "objective" in rows[0] else "augment"
    header = (
        label, "ms/step", "modeled", "kernels", "ex/s", "GFLOP", "GFLOP/s", "MFU", "state+batch MiB", "temp MiB",
        "compile s", "ratio",
    )  # fmt: skip
    cells = [
        (
            row[label],
            f"{1e3 * row['seconds']:.1f}",
            *_modeled(row),
            f"{row['examples_per_second']:.1f}",
            f"{row['flops_per_device'] / 1e9:.1f}",
            f"{row['flops_per_second_per_device'] / 1e9:.1f}",
            "-" if row["mfu"] is None else f"{row['mfu']:.1%}",
            f"{row['argument_bytes'] / 2**20:.1f}",
            f"{row['temporary_bytes'] / 2**20:.1f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['ratio']:.3f}",
        )
        for row in rows
    ]
    return options.align([header, *cells])


def _entries(names: str) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    return () if names == "none" else tuple((name, {}) for name in names.split("+"))


def _modeled(row: Mapping[str, Any]) -> tuple[str, str]:
    if row["kernels"] is None:
        return "-", "-"
    return f"{1e3 * row['modeled_seconds']:.1f}", str(sum(kind["executions"] for kind in row["kernels"]))
