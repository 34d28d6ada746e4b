"""Train variants over paired seeds and compare them.

Trains each variant with the same seeds, several runs at a time with their own cores, and prints mean, spread and
paired differences with 95 % intervals. The same command again continues where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.commands.common import options
from mmjax.core.config import Ge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    options.add_config(parser)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the folder of all runs")
    parser.add_argument("--augment", metavar="A,B+C", help="augmentations, a variant each; the first is the baseline")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME:KEY=VALUE;…", help="a variant by overrides; repeatable"
    )
    parser.add_argument("--seeds", type=int, default=8, metavar="N", help="seeds for each variant (default: 8)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="the first seed (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument(
        "--metrics", metavar="A,B",
        help="the final metrics to compare (default: rsum, acc@1, macro and group_score of what the run measures)",
    )  # fmt: skip
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Trains all variants, then prints the comparison."""
    options.check_ranges(args, seeds=Ge(1, "2 or more give a spread"), first_seed=Ge(0), jobs=Ge(1))
    workdir, metrics = options.local_workdir(args), options.split_csv(args.metrics)
    from mmjax.commands.common import comparison

    variants = comparison.make_variants(
        args.config, args.overrides, augment=options.split_csv(args.augment), variants=args.variant
    )
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    comparison.check(variants, seeds=seeds, metrics=metrics)
    comparison.train_all(variants, seeds=seeds, jobs=args.jobs, workdir=workdir)
    rows = comparison.compare(variants, seeds=seeds, workdir=workdir, metrics=metrics)
    options.print_result(rows, format_markdown, as_json=args.json)
    return 0


def format_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of ``compare`` as a Markdown table."""
    lines = ["| variant | metric | n | mean ± sd | paired difference [95 % interval] |", "|---|---|---|---|---|"]
    for row in rows:
        difference = "baseline"
        if "difference" in row:
            d = row["difference"]
            low, high = d["mean"] - d["half_width"], d["mean"] + d["half_width"]
            difference = f"{d['mean']:+.4g}" + (f" [{low:+.4g}, {high:+.4g}]" if d["n"] > 1 else "")
        spread = f"{row['mean']:.4g} ± {row['sd']:.3g}" if row["n"] > 1 else f"{row['mean']:.4g}"
        lines.append(f"| {row['variant']} | {row['metric']} | {row['n']} | {spread} | {difference} |")
    return "\n".join(lines)
