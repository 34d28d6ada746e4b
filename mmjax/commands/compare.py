"""Train recipes over paired seeds and compare them.

Trains each recipe with the same seeds, data order and budget, several runs at a time with their own cores, and writes
report.html and report.md: mean and spread, paired differences with 95 % intervals and Holm's correction, learning
curves, step times and what changed in retrieval. The same command again continues where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmjax.commands.common import options
from mmjax.core.config import ConfigError, Ge, Gt

NOT_PRINTED = ("curves", "rank_changes")
"""Parts of the results that are too long for ``--json``; ``comparison.json`` has them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    options.add_config(parser, required=False)
    parser.add_argument("--workdir", metavar="DIR", help="the folder of all runs and of the report")
    parser.add_argument(
        "--recipes", metavar="A,B+C",
        help="what is compared, each added to the config; the first is the baseline: none, any augmentation, transform "
        "or objective by its name, or a recipe of --recipes-file (default: none, and all of the file)",
    )  # fmt: skip
    parser.add_argument("--recipes-file", metavar="FILE", help="TOML or JSON: a table of KEY = VALUE for each recipe")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME:KEY=VALUE;…", help="a further recipe; repeatable"
    )
    parser.add_argument("--seeds", type=int, default=8, metavar="N", help="seeds for each recipe (default: 8)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="the first seed (default: 0)")
    parser.add_argument(
        "--fractions", metavar="A,B", help="sizes of the training data: fractions (0.25,0.5,1) or examples (1k,2k,4k)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument(
        "--metrics", metavar="A,B",
        help="the final metrics to compare, the most important first (default: rsum, acc@1, macro and group_score of "
        "what the run measures)",
    )  # fmt: skip
    parser.add_argument(
        "--detect", type=float, metavar="D",
        help="say how many seeds a difference of D in the first metric needs (default: the measured difference)",
    )  # fmt: skip
    parser.add_argument(
        "--time-steps", type=int, default=10, metavar="N", help="timed steps of each recipe, 0 for none (default: 10)"
    )
    parser.add_argument(
        "--examples", type=int, default=6, metavar="N", help="captions whose rank changed most (default: 6)"
    )
    parser.add_argument("--diff", nargs=2, metavar=("OLD", "NEW"), help="compare the reports of two folders instead")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Trains all recipes, then writes and prints the comparison."""
    limits = {"seeds": Ge(1, "2 or more give a spread"), "first_seed": Ge(0), "jobs": Ge(1), "detect": Gt(0)}
    options.check_ranges(args, **limits, time_steps=Ge(0), examples=Ge(0))
    if args.diff:
        return _diff(args)
    for name in ("config", "workdir"):
        if getattr(args, name) is None:
            raise ConfigError(f"--{name} is missing; it is needed to compare runs (--diff OLD NEW needs only reports)")
    workdir, metrics = options.local_workdir(args), options.split_csv(args.metrics)
    from mmjax.commands.common.jax_setup import keep_compiled_programs

    keep_compiled_programs()
    from mmjax.commands.comparing import comparison
    from mmjax.commands.comparing.recipes import make_recipes
    from mmjax.report.comparison import format_markdown

    recipes = make_recipes(
        args.config,
        args.overrides,
        names=options.split_csv(args.recipes),
        file=args.recipes_file,
        variants=args.variant,
    )
    results = comparison.compare(
        recipes,
        seeds=range(args.first_seed, args.first_seed + args.seeds),
        sizes=options.split_csv(args.fractions),
        metrics=metrics,
        jobs=args.jobs,
        workdir=workdir,
        detect=args.detect,
        time_steps=args.time_steps,
        examples=args.examples,
    )
    printed = {key: value for key, value in results.items() if key not in NOT_PRINTED}
    options.print_result(printed, format_markdown, as_json=args.json)
    return 0


def _diff(args: argparse.Namespace) -> int:
    from mmjax.commands.comparing import diff

    old, new = map(Path, args.diff)
    options.print_result(diff.compare_results(old, new), diff.format_markdown, as_json=args.json)
    return 0
